"""AFT-simple, an attention-free transformer without position biases (arXiv 2105.14103, equation 4).

q, k, v = W_q x, W_k x, W_v x
y_t     = sigma(q_t) * (sum over i <= t of exp(k_i) v_i) / (sum over i <= t of exp(k_i))
o       = W_o y

It is RWKV-4's recurrence without decay and without bonus, and is computed as that.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from rookery.models.initial import orthogonal
from rookery.ops import wkv4
from rookery.ops.fused import sigmoid_gate
from rookery.rivals.config import RivalConfig
from rookery.rivals.mixing import RivalMixing

__all__ = ["AFTSimple", "AFTSimpleState"]


class AFTSimpleState(NamedTuple):
    """What AFT-simple carries, in one layer, from one call to the next."""

    sums: Tensor
    """[B, 3, D], float32: numerator, denominator, and the maximum of k both are scaled by."""


class AFTSimple(RivalMixing):
    """An average of all values so far, weighted by keys alone."""

    def __init__(self, config: RivalConfig, layer: int):
        super().__init__(config, layer)
        D = config.width
        self.query = nn.Linear(D, D, bias=False)
        self.key = nn.Linear(D, D, bias=False)
        self.value = nn.Linear(D, D, bias=False)
        self.output = nn.Linear(D, D, bias=False)

    def forward(
        self,
        x: Tensor,
        state: AFTSimpleState | None,
        v_first: None,
        *,
        starts: Tensor | None = None,
        implementation: str | None = None,
    ) -> tuple[Tensor, AFTSimpleState, None]:
        """See ``TimeMixing.forward``."""
        k, v = self.key(x), self.value(x)
        nothing = k.new_zeros(k.shape[-1])
        sums = None if state is None else state.sums
        y, sums = wkv4(nothing, nothing, k, v, sums, starts=starts, implementation=implementation)
        return self.output(sigmoid_gate(y, self.query(x))), AFTSimpleState(sums), None

    def state_shapes(self, streams: int) -> tuple[tuple[int, ...], ...]:
        """See ``RivalMixing.state_shapes``."""
        return ((streams, 3, self.config.width),)

    def initial_values(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Orthogonal matrices, and zeros before the residual sum."""
        D = self.config.width
        values = {f"{name}.weight": orthogonal((D, D), generator) for name in ("query", "key", "value")}
        return values | {"output.weight": torch.zeros(D, D)}
