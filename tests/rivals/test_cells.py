"""RNN and LSTM against torch's modules and cells, token by token."""

from __future__ import annotations

import torch
from torch import nn

CLOSE = {"rtol": 1e-10, "atol": 1e-10}


def test_the_lstm_is_torchs(random_rival):
    att = random_rival("lstm").blocks[0].att
    torchs = nn.LSTM(16, 16, batch_first=True).double()
    torchs.load_state_dict(att.cell.state_dict())
    x = torch.randn(2, 9, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    hidden, (h, c) = torchs(x)
    y, state, _ = att(x, None, None)
    torch.testing.assert_close(y, hidden @ att.output.weight.T, **CLOSE)
    torch.testing.assert_close(state.hidden, h[0], **CLOSE)
    torch.testing.assert_close(state.cell, c[0], **CLOSE)


def test_the_lstm_is_torchs_cell_from_document_to_document(random_rival):
    att = random_rival("lstm").blocks[0].att
    cell = nn.LSTMCell(16, 16).double()
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in att.cell.state_dict().items()})
    x = torch.randn(2, 9, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    starts = torch.zeros(2, 9, dtype=torch.bool)
    starts[0, [0, 4]] = starts[1, [4, 8]] = True
    h = c = torch.zeros(2, 16, dtype=torch.float64)
    outputs = []
    for t in range(9):
        going_on = ~starts[:, t, None]
        h, c = cell(x[:, t], (h * going_on, c * going_on))
        outputs.append(h @ att.output.weight.T)
    y, state, _ = att(x, None, None, starts=starts)
    torch.testing.assert_close(y, torch.stack(outputs, dim=1), **CLOSE)
    torch.testing.assert_close(state.hidden, h, **CLOSE)
    torch.testing.assert_close(state.cell, c, **CLOSE)


def test_the_rnn_is_its_formula(random_rival):
    att = random_rival("rnn").blocks[0].att
    x = torch.randn(2, 9, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    cell = att.cell
    h, outputs = torch.zeros(2, 16, dtype=torch.float64), []
    for t in range(9):
        h = torch.tanh(
            x[:, t] @ cell.weight_ih_l0.T + cell.bias_ih_l0 + h @ cell.weight_hh_l0.T + cell.bias_hh_l0
        )
        outputs.append(h @ att.output.weight.T)
    y, state, _ = att(x, None, None)
    torch.testing.assert_close(y, torch.stack(outputs, dim=1), **CLOSE)
    torch.testing.assert_close(state.hidden, h, **CLOSE)
