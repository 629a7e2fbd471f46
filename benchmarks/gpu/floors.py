"""What must be moved and computed at least, and how long that takes: the arithmetic, without a device.

    python -m benchmarks.gpu --floors

Counted are the fewest bytes: each input read once and each output written once, in the forward pass and again
in the backward pass, which reads the inputs and the output's gradient and writes the inputs' gradients. What
an implementation keeps between the passes or reads again is its own affair. Vectors that all tokens share are
not counted, nor is the state before the first token, which is zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from rich.console import Console
from rich.table import Table

from benchmarks.gpu.setting import FULL, Rates, Shapes
from rookery.checkpoints.schema import expected_shapes
from rookery.config import ModelConfig

__all__ = [
    "RECURRENCES",
    "Recurrence",
    "Work",
    "decode_bytes",
    "gpt_parameters",
    "multiplied",
    "prefill_operations",
    "print_floors",
    "step_operations",
]

CHUNK = 16


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a pass must do at least."""

    bytes: int
    """To and from the device's memory."""

    operations: int
    """Multiplications and additions of matrix products."""

    exponentials: int
    """Of the special function units."""

    def __add__(self, other: Work) -> Work:
        """Both, one after the other."""
        return Work(
            bytes=self.bytes + other.bytes,
            operations=self.operations + other.operations,
            exponentials=self.exponentials + other.exponentials,
        )


@dataclass(frozen=True, kw_only=True)
class Recurrence:
    """What the floor of one recurrence is made of, chunks of 16 tokens at a time."""

    inputs: int
    """Tensors [B, T, H, K] that it reads, v among them; y is one more."""

    scores: int = 0
    """Products [C, K] x [K, C] of a chunk: tokens with tokens."""

    sums: int = 0
    """Products [C, C] x [C, V]: tokens weighed by those scores, and the triangular inverse applied."""

    reads: int = 0
    """Products [C, K] x [K, V]: of the state."""

    updates: int = 0
    """Products [K, C] x [C, V]: into the state."""

    outputs: int = 0
    """Of sums, those that only y needs: the backward pass need not compute them again. One of reads, too."""

    exponentials: int = 3
    """For each channel of a token: the decays to and from the middle of a chunk."""

    states: int = 1
    """Numbers of the state over channels: [B, H, K, V] is K of them for each; [B, 3, A] is 3."""

    def forward(self, B: int, T: int, H: int, K: int, *, itemsize: int) -> Work:
        """Read the inputs, write y and the last state."""
        channels = B * T * H * K
        return Work(
            bytes=(self.inputs + 1) * channels * itemsize + 4 * B * H * K * self._numbers(K),
            operations=2 * channels * ((self.scores + self.sums) * CHUNK + (self.reads + self.updates) * K),
            exponentials=self.exponentials * channels,
        )

    def backward(self, B: int, T: int, H: int, K: int, *, itemsize: int) -> Work:
        """Read the inputs and y's gradient, write theirs.

        Each product of the forward pass has two in the backward pass. What they need of the forward pass is
        computed again, but for y and the inverse: the scores, what is read of the state, and the states.
        """
        channels = B * T * H * K
        again = 2 * channels * ((self.scores + self.sums - self.outputs) * CHUNK)
        again += 2 * channels * (max(0, self.reads - 1) + self.updates) * K
        twice = 2 * self.forward(B, T, H, K, itemsize=itemsize).operations
        return Work(
            bytes=(2 * self.inputs + 1) * channels * itemsize,
            operations=twice + again,
            exponentials=self.exponentials * channels,
        )

    def both(self, B: int, T: int, H: int, K: int, *, itemsize: int) -> Work:
        """Forward and backward."""
        return self.forward(B, T, H, K, itemsize=itemsize) + self.backward(B, T, H, K, itemsize=itemsize)

    def _numbers(self, K: int) -> int:
        return K if self.scores else self.states


RECURRENCES = {
    # r, log_w, k, v, a, b. Scores a b, a k, r k, r b; sums (a k) v, the inverse, (r k) v, (r b) u; the state
    # is read by a and r, and written by k v and b u.
    "wkv7": Recurrence(inputs=6, scores=4, sums=4, reads=2, updates=2, outputs=2),
    # r, log_w, k, v.
    "wkv6": Recurrence(inputs=4, scores=1, sums=1, reads=1, updates=1, outputs=1),
    # The decay does not vary with the token: its powers are the same for all chunks.
    "wkv5": Recurrence(inputs=3, scores=1, sums=1, reads=1, updates=1, outputs=1, exponentials=0),
    # k, v; two exponentials for the output and two for the state.
    "wkv4": Recurrence(inputs=2, exponentials=4, states=3),
}


def multiplied(config: ModelConfig) -> int:
    """N of 6 N: the model's parameters but for the embedding, of which a token reads one row."""
    shapes = expected_shapes(config)
    return sum(prod(shape) for name, shape in shapes.items() if name != "emb.weight")


def gpt_parameters(config: ModelConfig) -> int:
    """The same of a GPT as deep and wide: 12 D^2 in a block, the head, and the vectors of the norms."""
    D, L = config.width, config.num_layers
    return L * (12 * D * D + 4 * D) + 2 * D + config.vocab_size * D


def step_operations(parameters: int, tokens: int) -> int:
    """Of a training step: 6 N for each token, 2 forward and 4 backward."""
    return 6 * parameters * tokens


def decode_bytes(config: ModelConfig, streams: int, *, itemsize: int = 2) -> int:
    """Read for one token of each stream: all weights once, a row of the embedding, the streams' states."""
    D, L = config.width, config.num_layers
    shifts = 2 * L * D * itemsize
    wkv = 4 * L * config.num_heads * config.head_size**2
    return multiplied(config) * itemsize + streams * (D * itemsize + shifts + wkv)


def prefill_operations(config: ModelConfig, tokens: int) -> int:
    """Of the matrices alone: 2 for each weight and token; the head only for the last one."""
    shapes = expected_shapes(config).items()
    layers = sum(
        prod(shape) for name, shape in shapes if name.startswith("blocks") and _is_matrix(name, shape)
    )
    return 2 * (layers * tokens + config.vocab_size * config.width)


def _is_matrix(name: str, shape: Sequence[int]) -> bool:
    return len(shape) == 2 and not name.endswith("r_k")


def print_floors(rates: Rates, shapes: Shapes = FULL) -> None:
    """The table of all floors at given rates."""
    B, T, H, K = shapes.kernel
    console = Console(width=120)
    console.print(
        f"Assumed, not measured: {rates.bandwidth / 1e12:g} TB/s, {rates.bf16 / 1e12:g} TFLOP/s in bf16 and "
        f"{rates.tf32 / 1e12:g} in tf32, dense.",
        highlight=False,
    )
    table = Table(title=f"Recurrences: B {B}, T {T}, {H} heads of {K}, bf16", title_justify="left")
    table.add_column("pass", no_wrap=True)
    for heading in ("GB", "ms by bytes", "Gop", "ms by tf32", "exponentials, G"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, recurrence in RECURRENCES.items():
        for direction in ("forward", "backward", "both"):
            work: Work = getattr(recurrence, direction)(B, T, H, K, itemsize=2)
            table.add_row(
                f"{name} {direction}",
                f"{work.bytes / 1e9:.2f}",
                f"{work.bytes / rates.bandwidth * 1e3:.2f}",
                f"{work.operations / 1e9:,.0f}",
                f"{work.operations / rates.tf32 * 1e3:.2f}",
                f"{work.exponentials / 1e9:.2f}",
            )
    console.print(table)
    table = Table(title="Models, bf16", title_justify="left")
    table.add_column("figure", no_wrap=True)
    table.add_column("floor or ceiling", justify="right", no_wrap=True)
    for size, config in shapes.models.items():
        rate = rates.bf16 / step_operations(multiplied(config), 1)
        table.add_row(
            f"training RWKV-7 {size}: 6 x {multiplied(config) / 1e9:.3f} G a token", f"{rate:,.0f} tok/s"
        )
        rate = rates.bf16 / step_operations(gpt_parameters(config), 1)
        table.add_row(
            f"training GPT {size}: 6 x {gpt_parameters(config) / 1e9:.3f} G a token", f"{rate:,.0f} tok/s"
        )
    size, config = list(shapes.models.items())[-1]
    for streams in (1, shapes.streams):
        count = decode_bytes(config, streams)
        name = f"decode {size}, {streams} at once: {count / 1e9:.2f} GB read a step"
        table.add_row(name, f"{streams * rates.bandwidth / count:,.0f} tok/s")
    operations = prefill_operations(config, shapes.prompt)
    name = f"prefill {size}, {shapes.prompt} tokens: {operations / 1e12:.1f} Top"
    table.add_row(name, f"{operations / rates.bf16 * 1e3:.1f} ms")
    console.print(table)
