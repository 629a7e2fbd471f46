"""A vanilla recurrent network (Elman 1990), torch's own.

h_t = tanh(W_i x_t + b_i + W_h h_{t-1} + b_h)
o   = W_o h_t
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from rookery.models.initial import orthogonal
from rookery.rivals.config import RivalConfig
from rookery.rivals.mixing import RivalMixing, over_documents

__all__ = ["RNN", "RNNState"]


class RNNState(NamedTuple):
    """What the network carries, in one layer, from one call to the next."""

    hidden: Tensor
    """[B, D]: h."""


class RNN(RivalMixing):
    """``nn.RNN`` and a matrix."""

    decayed: ClassVar[frozenset[str]] = frozenset({"cell.weight_ih_l0", "cell.weight_hh_l0"})

    def __init__(self, config: RivalConfig, layer: int):
        super().__init__(config, layer)
        self.cell = nn.RNN(config.width, config.width, batch_first=True)
        self.output = nn.Linear(config.width, config.width, bias=False)

    def forward(
        self,
        x: Tensor,
        state: RNNState | None,
        v_first: None,
        *,
        starts: Tensor | None = None,
        implementation: str | None = None,
    ) -> tuple[Tensor, RNNState, None]:
        """See ``TimeMixing.forward``."""
        before = RNNState(x.new_zeros(x.shape[0], x.shape[2])) if state is None else state
        y, after = over_documents(self.span, x, before, starts)
        return self.output(y), after, None

    def span(self, x: Tensor, state: RNNState) -> tuple[Tensor, RNNState]:
        """The cell over one span of one document for each row."""
        y, hidden = self.cell(x, state.hidden[None].to(x.dtype))
        return y, RNNState(hidden[0])

    def state_shapes(self, streams: int) -> tuple[tuple[int, ...], ...]:
        """See ``RivalMixing.state_shapes``."""
        return ((streams, self.config.width),)

    def initial_values(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Orthogonal matrices, which keep a state's length, and zeros before the residual sum."""
        D = self.config.width
        return {
            "cell.weight_ih_l0": orthogonal((D, D), generator),
            "cell.weight_hh_l0": orthogonal((D, D), generator),
            "cell.bias_ih_l0": torch.zeros(D),
            "cell.bias_hh_l0": torch.zeros(D),
            "output.weight": torch.zeros(D, D),
        }
