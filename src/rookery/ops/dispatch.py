"""Choosing, checking and calling an implementation: what the recurrences share around their mathematics.

Each recurrence has a table of `Implementation` rows, the preferred ones first. Choosing is one pass over it:
the first row that serves the call (device, dtype, number of tokens, what is installed) computes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from rookery.errors import ConfigError, StateError
from rookery.ops.precision import without_autocast

__all__ = ["Implementation", "call", "check_shape", "check_state", "choose", "prepare"]

_FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def _always() -> bool:
    return True


@dataclass(frozen=True, kw_only=True)
class Implementation:
    """One row of a recurrence's table."""

    name: str
    """What `implementation=` forces it by."""

    run: Callable[..., tuple[Tensor, Tensor]]
    """Takes the recurrence's inputs, the state, and `starts` or None; gives (y, state). All are of one dtype,
    but for inputs of a dtype that it reads."""

    min_tokens: int = 1
    """The shortest row of tokens for which it is faster than the rows of the table after it."""

    devices: tuple[str, ...] | None = None
    """Device types that it runs on, such as ``("cuda",)``; None for all."""

    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64)
    """What it can compute in."""

    reads: tuple[torch.dtype, ...] = ()
    """Dtypes of inputs that it takes as they are; all others are converted to what it computes in."""

    installed: Callable[[], bool] = _always
    """Whether this installation has what it needs."""

    traced: bool = True
    """Whether torch.compile looks inside. Loops over chunks, unrolled, take minutes to compile and gain
    nothing: such a form runs as it is, between two graphs."""

    in_place: bool = False
    """Whether it writes into the state that it is given, and so is never chosen but where it is forced."""

    def misfit(self, *, device: str, dtype: torch.dtype) -> str | None:
        """Why it cannot compute such a call at all, or None where it can."""
        if self.devices is not None and device not in self.devices:
            return f"runs on {', '.join(self.devices)}, not on {device}"
        if dtype not in self.dtypes:
            return f"does not compute in {dtype}"
        if not self.installed():
            return "is not installed"
        return None


def choose(
    table: tuple[Implementation, ...],
    *,
    device: str,
    dtype: torch.dtype,
    tokens: int,
    forced: str | None,
) -> Implementation:
    """The row of a table that computes a call: the forced one, or the first that fits.

    Raises:
        ConfigError: the forced row is unknown or cannot compute the call.
    """
    if forced is None:
        for row in table:
            fits = tokens >= row.min_tokens and row.misfit(device=device, dtype=dtype) is None
            if fits and not row.in_place:
                return row
        raise ConfigError(f"no implementation computes in {dtype} on {device}")
    for row in table:
        if row.name == forced:
            problem = row.misfit(device=device, dtype=dtype)
            if problem is not None:
                raise ConfigError(f"implementation {forced!r} {problem}")
            return row
    known = ", ".join(row.name for row in table if not row.in_place)
    raise ConfigError(f"implementation {forced!r} is unknown; there are {known}")


def compute_dtype(tensors: tuple[Tensor, ...]) -> torch.dtype:
    """float64 where one of the tensors is float64, else float32."""
    return torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32


def check_shape(operator: str, name: str, tensor: Tensor, wanted: tuple[int, ...], legend: str) -> None:
    """Check one input of a recurrence.

    Raises:
        ConfigError: its shape is not the wanted one, or it is no floating point tensor.
    """
    if tuple(tensor.shape) != wanted:
        raise ConfigError(
            f"{operator}: {name} has shape {tuple(tensor.shape)}, but needs {legend} = {wanted}"
        )
    if tensor.dtype not in _FLOATS:
        raise ConfigError(f"{operator}: {name} is {tensor.dtype}, but needs a floating point dtype")


def check_state(
    operator: str, state: Tensor, wanted: tuple[int, ...], legend: str, device: torch.device
) -> None:
    """Check a recurrence's initial state.

    Raises:
        StateError: it has another shape, is no floating point tensor, or lies on another device.
    """
    if tuple(state.shape) != wanted:
        raise StateError(
            f"{operator}: the state has shape {tuple(state.shape)}, but these inputs need {legend} = {wanted}"
        )
    if state.dtype not in _FLOATS:
        raise StateError(f"{operator}: the state is {state.dtype}, but needs a floating point dtype")
    if state.device != device:
        raise StateError(
            f"{operator}: the state is on {state.device}, but the inputs are on {device}; move it"
        )


def call(
    operator: str,
    table: tuple[Implementation, ...],
    inputs: tuple[Tensor, ...],
    v: Tensor,
    state: Tensor | None,
    fresh_state: Callable[[torch.dtype], Tensor],
    starts: Tensor | None,
    forced: str | None,
) -> tuple[Tensor, Tensor]:
    """Compute a recurrence whose inputs' shapes have been checked; the arguments are those of `prepare`.

    Returns:
        y in the dtype of v, and the state after the last token in float32, or float64 where an input is.

    Raises:
        ConfigError: see `prepare`.
    """
    row, before = prepare(operator, table, inputs, v, state, fresh_state, starts, forced)
    with without_autocast(v.device.type):
        run: Callable[..., tuple[Tensor, Tensor]] = row.run
        if torch.compiler.is_compiling() and not row.traced:
            run = cast("Any", torch.compiler.disable(run))
        y, after = run(*(x if x.dtype in row.reads else x.to(before.dtype) for x in inputs), before, starts)
    return y.to(v.dtype), after


def prepare(
    operator: str,
    table: tuple[Implementation, ...],
    inputs: tuple[Tensor, ...],
    v: Tensor,
    state: Tensor | None,
    fresh_state: Callable[[torch.dtype], Tensor],
    starts: Tensor | None,
    forced: str | None,
) -> tuple[Implementation, Tensor]:
    """Check a call, and choose what computes it.

    Args:
        operator: the recurrence's name, for messages.
        table: its implementations.
        inputs: its tensors, in the order of its signature.
        v: the one of them whose shape starts with [B, T], whose device decides, and whose dtype y gets.
        state: the state before the first token, or None for `fresh_state`.
        fresh_state: makes the state before any token, in the dtype it is given.
        starts: [B, T] bool, true where a document starts, or None.
        forced: the name of an implementation, or None to choose one.

    Returns:
        The row of the table, and the state that it begins with, in the dtype that it computes in.

    Raises:
        ConfigError: no tokens, bad `starts`, or an implementation that cannot compute this.
    """
    B, T = v.shape[:2]
    if T < 1:
        raise ConfigError(f"{operator}: needs at least one token")
    if starts is not None and (tuple(starts.shape) != (B, T) or starts.dtype != torch.bool):
        raise ConfigError(
            f"{operator}: starts is {starts.dtype} of shape {tuple(starts.shape)}, "
            f"but needs torch.bool of shape [B, T] = {(B, T)}"
        )
    dtype = compute_dtype(inputs if state is None else (*inputs, state))
    row = choose(table, device=v.device.type, dtype=dtype, tokens=T, forced=forced)
    before = fresh_state(dtype) if state is None else state.to(dtype)
    if starts is not None:
        # Whatever a state holds, even nan, a document that starts with the row must not see it.
        unseen = starts[:, 0].view(-1, *(1,) * (before.dim() - 1))
        before = torch.where(unseen, fresh_state(dtype), before)
    return row, before
