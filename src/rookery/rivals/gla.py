"""Gated linear attention, GLA (arXiv 2312.06635, section 4.4).

q, k, v   = W_q x, W_k x, W_v x                      half as many channels of q and k as of v
log alpha = log sigma(W_2 W_1 x + b) / 16            decay of each key channel, near 1
y         = norm(gla(q, alpha, k, v)) * silu(W_r x + b_r)
o         = W_o y                                    with the recurrence of rookery.ops.gla
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rookery.models.initial import orthogonal
from rookery.models.parts import HeadNorm
from rookery.ops import gla
from rookery.ops.tensors import full_precision
from rookery.rivals.config import RivalConfig
from rookery.rivals.mixing import RivalMixing

__all__ = ["GLA", "GLAState"]

# The paper's rank of W_2 W_1, and the power to which it takes the gate.
_RANK = 16
_TEMPERATURE = 16


class GLAState(NamedTuple):
    """What GLA carries, in one layer, from one call to the next."""

    memory: Tensor
    """[B, H, K, V], float32: S."""


class GLA(RivalMixing):
    """Linear attention whose state decays by as much as the data wants."""

    def __init__(self, config: RivalConfig, layer: int):
        super().__init__(config, layer)
        D = config.width
        self.query = nn.Linear(D, D // 2, bias=False)
        self.key = nn.Linear(D, D // 2, bias=False)
        self.value = nn.Linear(D, D, bias=False)
        self.decay_down = nn.Linear(D, _RANK, bias=False)
        self.decay_up = nn.Linear(_RANK, D // 2)
        self.gate = nn.Linear(D, D)
        self.output = nn.Linear(D, D, bias=False)
        self.norm = HeadNorm(D)

    def forward(
        self,
        x: Tensor,
        state: GLAState | None,
        v_first: None,
        *,
        starts: Tensor | None = None,
        implementation: str | None = None,
    ) -> tuple[Tensor, GLAState, None]:
        """See ``TimeMixing.forward``."""
        decay = full_precision(self.decay_up(self.decay_down(x)))
        log_alpha = F.logsigmoid(decay) / _TEMPERATURE
        heads = (*x.shape[:2], self.config.num_heads, -1)
        y, memory = gla(
            self.query(x).view(heads),
            log_alpha.view(heads),
            self.key(x).view(heads),
            self.value(x).view(heads),
            None if state is None else state.memory,
            starts=starts,
            implementation=implementation,
        )
        return self.output(self.norm(y, self.gate(x))), GLAState(memory), None

    def state_shapes(self, streams: int) -> tuple[tuple[int, ...], ...]:
        """See ``RivalMixing.state_shapes``."""
        V = self.config.head_size
        return ((streams, self.config.num_heads, V // 2, V),)

    def initial_values(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Orthogonal matrices; decays of 0.5^(1/16) for all data, and zeros before the residual sum."""
        D = self.config.width
        return {
            "query.weight": orthogonal((D // 2, D), generator),
            "key.weight": orthogonal((D // 2, D), generator),
            "value.weight": orthogonal((D, D), generator),
            "decay_down.weight": torch.zeros(_RANK, D),
            "decay_up.weight": orthogonal((D // 2, _RANK), generator),
            "decay_up.bias": torch.zeros(D // 2),
            "gate.weight": orthogonal((D, D), generator),
            "gate.bias": torch.zeros(D),
            "output.weight": torch.zeros(D, D),
            "norm.weight": torch.ones(D),
            "norm.bias": torch.zeros(D),
        }
