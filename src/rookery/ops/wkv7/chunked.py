"""RWKV-7's recurrence, time-parallel: matrix products inside chunks, and a pass of the state over the chunks.

Inside a chunk of C tokens, with P_t the decay from the chunk's middle to after token t, and

    r~_t = r_t P_t    a~_t = a_t P_{t-1}    X = [r~; a~]
    k~_t = k_t / P_t  b~_t = b_t / P_t      E = [k~; b~]

the state need not be formed at each token. What a reads from it, U, and what comes out, Y, are

    U = M (tril(a~ k~^T, -1) V + a~ S)          M = (I - tril(a~ b~^T, -1))^-1
    Y = tril(r~ k~^T) V + tril(r~ b~^T) U + r~ S
    S' = g (S + k~^T V + b~^T U)

where S is the state before the chunk, already decayed to the chunk's middle, and S' the state after it,
decayed to the next one's middle by g (the last one's: to the end). With the middle as their origin, P and 1/P
stay within e^(0.6065 C/2) for the model's decays, a factor of 128.

The backward pass is written out, because it then keeps no more than the states between chunks: it forms X, E,
M and U again and mirrors each product above. The origin of P cancels in the gradient of log_w, and with it
each pair of tokens on one side of the decay; what is left are sums over the tokens after it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rookery.ops.chunks import document_masks, from_chunks, segments, to_chunks
from rookery.ops.precision import without_autocast
from rookery.ops.wkv7.reference import wkv7_reference

__all__ = ["wkv7_chunked"]

CHUNK = 16
# The model's log_w is above -0.6065. Far below that, products of a chunk's decays leave float32, and rounding
# swamps the gradient of log_w, which is of the order of the decay itself: there the loop takes over.
STRONGEST_LOG_DECAY = -5.0


def wkv7_chunked(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    state: Tensor,
    starts: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The arguments of `rookery.ops.wkv7`, in one dtype. Where log_w goes below -5, the loop takes over."""
    if log_w.detach().amin() < STRONGEST_LOG_DECAY:
        return wkv7_reference(r, log_w, k, v, a, b, state, starts)
    return _Chunked.apply(r, log_w, k, v, a, b, state, starts)  # pyright: ignore[reportReturnType]


class _Segment(NamedTuple):
    """What some successive chunks make of their inputs: n chunks, N = B H heads, C tokens a chunk."""

    decay: Tensor
    """P, [n, B, H, C + 1, K]: row t from the chunk's middle to before token t."""

    enter: Tensor
    """[N, K, 1]: the decay from before the first chunk to its middle."""

    step: Tensor
    """g, [n, N, K, 1]: from a chunk's middle to the next one's; the last one's to its end."""

    readers: Tensor
    """X = [r~; a~], [n N, 2C, K]."""

    writers: Tensor
    """E = [k~; b~], [n N, 2C, K]."""

    hidden: Tensor
    """[.., 2C, 2C] bool, broadcasting to the scores: the reader must not see the writer."""

    scores: Tensor
    """X E^T, [n N, 2C, 2C], 0 where hidden."""

    solve: Tensor
    """M, [n N, C, C]."""

    values: Tensor
    """[V; U], [n N, 2C, V]; U lacks the state's part, which `state_readers` brings."""

    state_readers: Tensor
    """[r~; M a~], [n N, 2C, K], 0 for tokens that the state before the chunk does not reach."""

    state_writers: Tensor
    """E, 0 for tokens that do not reach the state after the chunk."""

    sees_state: Tensor | None
    """[n N, 2C, 1]: 1 or 0, the rows of X that read the state; None for all."""

    reaches_state: Tensor | None
    """[n N, 2C, 1]: 1 or 0, the rows of E that write to the state; None for all."""

    passes: Tensor | None
    """[n, N, 1, 1]: 1 or 0, whether the state passes through the chunk; None where all do."""


def _causal(C: int, device: torch.device) -> Tensor:
    """[2C, 2C] bool: what the rows [r~; a~] must not see of [k~; b~]; r sees its own token, a does not."""
    row = torch.arange(2 * C, device=device)
    token = row % C
    return token[:, None] < token + (row >= C)[:, None]


def _segment(inputs: list[Tensor], starts: Tensor | None, part: slice) -> _Segment:
    r, log_w, k, v, a, b = (x[:, part] for x in inputs)
    C, V = CHUNK, v.shape[3]
    log_w = to_chunks(log_w, C)
    n, B, H, _, K = log_w.shape
    N = B * H
    total = log_w.new_zeros(n, B, H, C + 1, K)
    torch.cumsum(log_w, dim=3, out=total[..., 1:, :])
    middle = total[..., C // 2, None, :]
    step = total[..., -1:, :] - middle
    step[:-1] += middle[1:]
    decay = (total - middle).exp_()

    readers = decay.new_empty(n, B, H, 2, C, K)
    writers = torch.empty_like(readers)
    torch.mul(to_chunks(r, C), decay[..., 1:, :], out=readers[..., 0, :, :])
    torch.mul(to_chunks(a, C), decay[..., :-1, :], out=readers[..., 1, :, :])
    torch.div(to_chunks(k, C), decay[..., 1:, :], out=writers[..., 0, :, :])
    torch.div(to_chunks(b, C), decay[..., 1:, :], out=writers[..., 1, :, :])
    values = decay.new_empty(n, B, H, 2 * C, V)
    values[..., :C, :] = to_chunks(v, C)

    readers = readers.view(n * N, 2 * C, K)
    writers = writers.view(n * N, 2 * C, K)
    values = values.view(n * N, 2 * C, V)
    hidden = _causal(C, v.device)
    sees = reaches = passes = None
    if starts is not None:
        masks = document_masks(starts[:, part], C)

        def rows(mask: Tensor) -> Tensor:
            return mask.to(v.dtype).expand(n, B, H, C, 1).repeat(1, 1, 1, 2, 1).view(n * N, 2 * C, 1)

        hidden = hidden | ~masks.same.expand(n, B, H, C, C).reshape(n * N, C, C).repeat(1, 2, 2)
        sees, reaches = rows(masks.sees_state), rows(masks.reaches_state)
        passes = masks.passes.to(v.dtype).expand(n, B, H, 1, 1).reshape(n, N, 1, 1)
    scores = (readers @ writers.mT).masked_fill_(hidden, 0)
    identity = torch.eye(C, dtype=v.dtype, device=v.device)
    solve = torch.linalg.solve_triangular(-scores[:, C:, C:], identity, upper=False, unitriangular=True)
    torch.bmm(solve, scores[:, C:, :C] @ values[:, :C], out=values[:, C:])
    state_readers = readers.clone() if sees is None else readers * sees
    state_readers[:, C:] = solve @ state_readers[:, C:]
    return _Segment(
        decay=decay,
        enter=middle[0].exp().view(N, K, 1),
        step=step.exp_().view(n, N, K, 1),
        readers=readers,
        writers=writers,
        hidden=hidden,
        scores=scores,
        solve=solve,
        values=values,
        state_readers=state_readers,
        state_writers=writers if reaches is None else writers * reaches,
        sees_state=sees,
        reaches_state=reaches,
        passes=passes,
    )


def _forward(segment: _Segment, before: Tensor) -> tuple[Tensor, Tensor]:
    """Y [n N, C, V] of a segment, and the states before each of its chunks and after it, [n + 1, N, K, V]."""
    n, N, K, _ = segment.step.shape
    C, V = CHUNK, before.shape[2]
    values, readers, writers = (
        x.view(n, N, 2 * C, -1) for x in (segment.values, segment.state_readers, segment.state_writers)
    )
    states = before.new_empty(n + 1, N, K, V)
    torch.mul(before, segment.enter, out=states[0])
    for i in range(n):
        values[i, :, C:].baddbmm_(readers[i, :, C:], states[i])
        passed = states[i] if segment.passes is None else states[i] * segment.passes[i]
        torch.baddbmm(passed, writers[i].mT, values[i], out=states[i + 1])
        states[i + 1].mul_(segment.step[i])
    inside = segment.scores[:, :C] @ segment.values
    y = inside.baddbmm_(segment.state_readers[:, :C], states[:-1].view(n * N, K, V))
    return y, states


class _Gradients(NamedTuple):
    """Gradients of a segment's inputs, [n, B, H, C, K] or [.., V], where they are to be written."""

    r: Tensor
    log_w: Tensor
    k: Tensor
    v: Tensor
    a: Tensor
    b: Tensor


def _backward(segment: _Segment, states: Tensor, dy: Tensor, dstate: Tensor, grads: _Gradients) -> Tensor:
    """Write the gradients of a segment's inputs; returns that of the state before it, [N, K, V].

    dx is the gradient of x: dy [n, B, H, C, V], and dstate [N, K, V] of the state after the segment.
    """
    n, N, K, V = states[:-1].shape
    C = CHUNK
    X, E, scores, values = segment.readers, segment.writers, segment.scores, segment.values
    before = states[:-1].view(n * N, K, V)
    values[:, C:].baddbmm_(segment.state_readers[:, C:], before)

    # The chain over the chunks in reverse. After it, rows [dV; dU] of dvalues are complete.
    dout = dy.new_empty(n, N, 2 * C, V)
    dout[:, :, :C] = dy.reshape(n, N, C, V)
    dvalues = scores[:, :C].mT @ dout.view(n * N, 2 * C, V)[:, :C]
    dvalues_of, readers, writers = (
        x.view(n, N, 2 * C, -1) for x in (dvalues, segment.state_readers, segment.state_writers)
    )
    dsum = dy.new_empty(n, N, K, V)
    dstep = dy.new_empty(n, N, K)
    for i in reversed(range(n)):
        torch.sum(dstate * states[i + 1], -1, out=dstep[i])
        torch.mul(dstate, segment.step[i], out=dsum[i])
        dvalues_of[i].baddbmm_(writers[i], dsum[i])
        dout[i, :, C:] = dvalues_of[i, :, C:]
        passed = dsum[i] if segment.passes is None else dsum[i] * segment.passes[i]
        dstate = torch.baddbmm(passed, readers[i].mT, dout[i])
    dstate = dstate * segment.enter

    # From the gradient of U = M Z to that of Z, of which the rows of a~ are made.
    dout = dout.view(n * N, 2 * C, V)
    torch.bmm(segment.solve.mT, dvalues[:, C:], out=dout[:, C:])
    dv = torch.baddbmm(dvalues[:, :C], scores[:, C:, :C].mT, dout[:, C:])
    dscores = (dout @ values.mT).masked_fill_(segment.hidden, 0)
    dX, dE = dout @ before.mT, values @ dsum.view(n * N, K, V).mT
    if segment.sees_state is not None and segment.reaches_state is not None:
        dX, dE = dX.mul_(segment.sees_state), dE.mul_(segment.reaches_state)
    dX.baddbmm_(dscores, E)
    dE.baddbmm_(dscores.mT, X)

    inner = (*dy.shape[:3], 2, C, K)
    X, E, dX, dE = X.view(inner), E.view(inner), dX.view(inner), dE.view(inner)
    decay_to, decay_after = segment.decay[..., :-1, :], segment.decay[..., 1:, :]
    torch.mul(dX[:, :, :, 0], decay_after, out=grads.r)
    torch.mul(dX[:, :, :, 1], decay_to, out=grads.a)
    torch.div(dE[:, :, :, 0], decay_after, out=grads.k)
    torch.div(dE[:, :, :, 1], decay_after, out=grads.b)
    grads.v.copy_(dv.view_as(grads.v))

    # By logarithm, every row of X and E depends on the sum of log_w up to it, with opposite signs.
    dX.mul_(X)
    dE.mul_(E)
    dtotal = dX[:, :, :, 0].sub_(dE[:, :, :, 0]).sub_(dE[:, :, :, 1])
    dtotal[..., :-1, :] += dX[:, :, :, 1, 1:]
    dtotal[..., -1, :] += dstep.view(*dy.shape[:3], K)
    upper = torch.ones(C, C, dtype=dy.dtype, device=dy.device).triu_()
    grads.log_w.copy_(upper @ dtotal)
    return dstate


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        *inputs, state, starts = arguments
        B, T, H, V = inputs[3].shape
        K = state.shape[2]
        keep = any(ctx.needs_input_grad)
        after = state.reshape(B * H, K, V)
        outputs, kept = [], []
        for part in segments(T, CHUNK, B * H, state.device.type):
            y, states = _forward(_segment(inputs, starts, part), after)
            after = states[-1]
            outputs.append(from_chunks(y.view(-1, B, H, CHUNK, V), part.stop - part.start))
            if keep:
                kept.append(states)
        if keep:
            ctx.save_for_backward(*inputs, starts, *kept)
        return torch.cat(outputs, dim=1), after.clone().view(B, H, K, V)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dstate: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        # Read once: activation checkpointing recomputes them, and refuses to do so twice.
        saved = ctx.saved_tensors
        (*inputs, starts), kept = saved[:7], saved[7:]
        B, T, H, _ = dy.shape
        dstate = dstate.flatten(0, 1)
        # Whole chunks, so that each segment writes its gradients in place.
        padded = T + -T % CHUNK
        grads = [x.new_empty(B, padded, H, x.shape[3]) for x in inputs]
        parts = segments(T, CHUNK, B * H, dy.device.type)
        with without_autocast(dy.device.type):
            for part, states in zip(reversed(parts), reversed(kept), strict=True):
                whole = slice(part.start, part.stop + -part.stop % CHUNK)
                targets = _Gradients(*(to_chunks(grad[:, whole], CHUNK) for grad in grads))
                dy_part = to_chunks(dy[:, part], CHUNK)
                dstate = _backward(_segment(inputs, starts, part), states, dy_part, dstate, targets)
        trimmed = [grad[:, :T] for grad in grads]
        if starts is not None:
            # The state is zero before these: what the sums leave here is rounding.
            trimmed[1].masked_fill_(starts[:, :, None, None], 0)
        return (*trimmed, dstate.unflatten(0, (B, H)), None)
