"""Long short-term memory (Hochreiter and Schmidhuber 1997), torch's own.

i, f, g, o = sigma, sigma, tanh, sigma of W_i x_t + b_i + W_h h_{t-1} + b_h
c_t        = f c_{t-1} + i g
h_t        = o tanh(c_t)
output     = W_o h_t
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from rookery.models.initial import orthogonal
from rookery.rivals.config import RivalConfig
from rookery.rivals.mixing import RivalMixing, over_documents

__all__ = ["LSTM", "LSTMState"]

_GATES = 4


class LSTMState(NamedTuple):
    """What the network carries, in one layer, from one call to the next."""

    hidden: Tensor
    """[B, D]: h."""

    cell: Tensor
    """[B, D]: c."""


class LSTM(RivalMixing):
    """``nn.LSTM`` and a matrix."""

    decayed: ClassVar[frozenset[str]] = frozenset({"cell.weight_ih_l0", "cell.weight_hh_l0"})

    def __init__(self, config: RivalConfig, layer: int):
        super().__init__(config, layer)
        self.cell = nn.LSTM(config.width, config.width, batch_first=True)
        self.output = nn.Linear(config.width, config.width, bias=False)

    def forward(
        self,
        x: Tensor,
        state: LSTMState | None,
        v_first: None,
        *,
        starts: Tensor | None = None,
        implementation: str | None = None,
    ) -> tuple[Tensor, LSTMState, None]:
        """See ``TimeMixing.forward``."""
        if state is None:
            state = LSTMState(*(x.new_zeros(x.shape[0], x.shape[2]) for _ in LSTMState._fields))
        y, after = over_documents(self.span, x, state, starts)
        return self.output(y), after, None

    def span(self, x: Tensor, state: LSTMState) -> tuple[Tensor, LSTMState]:
        """The cell over one span of one document for each row."""
        y, (hidden, cell) = self.cell(x, tuple(part[None].to(x.dtype) for part in state))
        return y, LSTMState(hidden[0], cell[0])

    def state_shapes(self, streams: int) -> tuple[tuple[int, ...], ...]:
        """See ``RivalMixing.state_shapes``."""
        return ((streams, self.config.width),) * 2

    def initial_values(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Orthogonal for each gate, gates that remember at first (a bias of 1), zeros before the sum."""
        D = self.config.width
        forget = torch.zeros(_GATES, D)
        forget[1] = 1.0
        return {
            "cell.weight_ih_l0": torch.cat([orthogonal((D, D), generator) for _ in range(_GATES)]),
            "cell.weight_hh_l0": torch.cat([orthogonal((D, D), generator) for _ in range(_GATES)]),
            "cell.bias_ih_l0": forget.flatten(),
            "cell.bias_hh_l0": torch.zeros(_GATES * D),
            "output.weight": torch.zeros(D, D),
        }
