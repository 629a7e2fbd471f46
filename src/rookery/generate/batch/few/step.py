"""The launches of a step of few streams: which kernel reads and writes what, and in how many programs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rookery.generate.batch.few.weights import Layer, Weights
from rookery.ops.triton import block, triton_kernels
from rookery.state import State

__all__ = ["MOST_STREAMS", "few_streams_step", "row_tiles"]

MOST_STREAMS = 4
"""Vectors of more streams find no room in registers beside the weights, and would fill tensor cores."""

ROWS = 8
"""Of a tile."""

PROGRAMS = 256
"""Nearly two for each of the 132 multiprocessors of an H100, and a divisor of many matrices' rows."""

# Lanes over the columns of a tile, those of four warps, and what one lane reads at once.
_LANES, _BYTES = 128, 16
_WARPS = _LANES // 32
# Tiles on their way at a time through shared memory: 48 KB of a program.
_STAGES = 4
# With these, four programs of `project` share a multiprocessor: all 416 of a model of 1.5B run at once.
_REGISTERS = 128
_MIX_WARPS = 8


def row_tiles(rows: int, streams: int) -> int:
    """Tiles one below the other that a program multiplies by the same vectors, which it makes but once.

    As many as leave enough programs, and as there are registers for the sums of all streams.
    """
    tiles = 4 if streams == 1 else 2
    while tiles > 1 and -(-rows // (tiles * ROWS)) < PROGRAMS:
        tiles //= 2
    return tiles


def few_streams_step(
    weights: Weights, tokens: Tensor, state: State[Tensor], logits: Tensor
) -> Callable[[], None]:
    """What reads a token of each stream, as often as it is called.

    Args:
        weights: of a model that ``serves`` accepts.
        tokens: [M] int64, read.
        state: of M streams, each layer's contiguous, read and written.
        logits: [M, N], written.
    """
    launches = list(_Step(weights, tokens, state, logits).launches())

    def run() -> None:
        for launch in launches:
            launch()

    return run


class _Step:
    """The memory that kernels pass their results in, and the kernels with their arguments."""

    def __init__(self, weights: Weights, tokens: Tensor, state: State[Tensor], logits: Tensor):
        self.kernels = triton_kernels("rookery.generate.batch.few.kernels")
        self.weights, self.tokens, self.state, self.logits = weights, tokens, state, logits
        self.config, self.streams = weights.model.config, len(tokens)
        D, A, M = self.config.width, self.config.attention_width, self.streams
        self.dtype = weights.model.emb.weight.dtype

        def scratch(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=tokens.device)

        self.x = scratch(M, D)
        self.v_first = scratch(M, A)
        self.normal = scratch(M, D, dtype=state.time_shift.dtype)
        self.y = scratch(M, A, dtype=self.dtype)
        self.expanded = scratch(M, self.config.ffn_width, dtype=self.dtype)
        # All layers have as much room as the one of the largest ranks.
        rows = max(layer.ranks.ends[-1] for layer in weights.layers)
        self.projected = scratch(M * (3 * A + rows))

    def launches(self) -> Iterator[Callable[[], Any]]:
        """The step, kernel by kernel."""
        model, D = self.weights.model, self.config.width
        norm = model.get_submodule("blocks.0.ln0")
        yield self._launch(
            self.kernels.embed,
            (self.streams,),
            *(self.tokens, model.emb.weight, norm.weight, norm.bias, self.x, norm.eps),
            D=D,
            BD=block(D),
        )
        for layer, *state in zip(self.weights.layers, *(part.unbind() for part in self.state), strict=True):
            yield from self._layer(layer, State(*state))
        yield self._normed(
            self.kernels.head,
            self.config.vocab_size,
            *(
                model.head.weight,
                self.x,
                model.ln_out.weight,
                model.ln_out.bias,
                model.ln_out.eps,
                self.logits,
            ),
            N=self.config.vocab_size,
        )

    def _layer(self, layer: Layer, state: State[Tensor]) -> Iterator[Callable[[], Any]]:
        att, ffn, blk = layer.att, layer.ffn, layer.block
        A, F, H = self.config.attention_width, self.config.ffn_width, self.config.num_heads
        ends = dict(zip(("WE", "AE", "VE", "R"), layer.ranks.ends, strict=True))
        yield self._normed(
            self.kernels.project,
            3 * A + layer.ranks.ends[-1],
            *(att.receptance.weight, att.key.weight, att.value.weight, layer.low),
            *(self.x, blk.ln1.weight, blk.ln1.bias, blk.ln1.eps),
            *(state.time_shift, layer.shares, self.projected, self.normal),
            parts=(A, A, A, layer.ranks.ends[-1]),
            registers=_REGISTERS,
            A=A,
            **ends,
        )
        first = layer.ranks.value == 0
        names = ("w", "a", "w" if first else "v", "g")
        yield self._launch(
            self.kernels.mix,
            (H, self.streams),
            self.projected,
            *(getattr(att, f"{name}2") for name in names),
            *(getattr(att, f"{name}0") for name in names[:3]),
            *(att.k_k, att.k_a, att.r_k, att.ln_x.weight, att.ln_x.bias, att.ln_x.eps),
            *(self.v_first, state.wkv, self.y),
            A=A,
            **ends,
            **{f"{name}R": rank for name, rank in zip("WAVG", layer.ranks, strict=True)},
            **{f"{name}B": block(rank) for name, rank in zip("WAVG", layer.ranks, strict=True)},
            K=self.config.head_size,
            BK=block(self.config.head_size),
            FIRST=first,
            num_warps=_MIX_WARPS,
        )
        yield self._added(att.output.weight, self.y, state.time_shift)
        yield self._normed(
            self.kernels.key,
            F,
            *(ffn.key.weight, self.x, blk.ln2.weight, blk.ln2.bias, blk.ln2.eps),
            *(state.channel_shift, ffn.x_k, self.expanded, self.normal),
            F=F,
        )
        yield self._added(ffn.value.weight, self.expanded, state.channel_shift)

    def _normed(
        self,
        kernel: Any,
        rows: int,
        *arguments: Any,
        parts: tuple[int, ...] | None = None,
        registers: int | None = None,
        **constants: int,
    ) -> Callable[[], Any]:
        """Products of so many rows in all with the norm of x; a program has rows of one of the parts.

        registers: at most, where a program makes do with them: sums of two tiles, numbers of 16 bits.
        """
        D = self.config.width
        tiles = row_tiles(rows, self.streams)
        programs = sum(-(-part // (tiles * ROWS)) for part in parts or (rows,))
        suffices = tiles * self.streams <= 2 and self.dtype.itemsize == 2
        limit = {"maxnreg": registers} if registers and suffices else {}
        return self._launch(
            kernel,
            (programs,),
            *arguments,
            **constants,
            D=D,
            BD=block(D),
            M=self.streams,
            G=tiles,
            BN=ROWS,
            **self._columns(),
            **limit,
        )

    def _added(self, weight: Tensor, x: Tensor, shift: Tensor) -> Callable[[], Any]:
        """x += W y, and what the mixing read becomes its state's shift."""
        D, F = weight.shape
        rows = ROWS if -(-D // ROWS) >= PROGRAMS else ROWS // 2
        return self._launch(
            self.kernels.add_product,
            (-(-D // rows),),
            *(weight, x, self.x, self.normal, shift),
            D=D,
            F=F,
            M=self.streams,
            BN=rows,
            **self._columns(),
            STAGES=_STAGES,
        )

    def _columns(self) -> dict[str, int]:
        """Of a tile."""
        together = _BYTES // self.dtype.itemsize
        return {"BK": _LANES * together, "VEC": together}

    def _launch(
        self, kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any
    ) -> Callable[[], Any]:
        return partial(kernel[grid], *arguments, **{"num_warps": _WARPS, **constants})
