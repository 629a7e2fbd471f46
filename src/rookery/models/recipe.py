"""The published recipe: initial values, and how each parameter is trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rookery.models.sequence_model import Block, SequenceModel
from rookery.models.time_mixing import TimeMixing

__all__ = ["init_weights", "parameter_groups"]


@torch.no_grad()
def init_weights(model: SequenceModel[Any, Any], *, seed: int) -> None:
    """Give every parameter the initial value of the published recipe of its architecture.

    Values are drawn on the CPU in float32, whatever the model's device and dtype: one seed gives one model.
    Its first predictions are close to uniform, and its matrices before each residual sum are zero.
    """
    generator = torch.Generator().manual_seed(seed)
    _assign(model, model.initial_values(generator), beside="blocks")
    for block in model.blocks:
        assert isinstance(block, Block)
        for norm in (block.ln0, block.ln1, block.ln2):
            for name, parameter in norm.named_parameters():
                parameter.fill_(1.0 if name == "weight" else 0.0)
        _assign(block.att, block.att.initial_values(generator))
        _assign(block.ffn, block.ffn.initial_values(generator))


def _assign(module: nn.Module, values: dict[str, Tensor], beside: str | None = None) -> None:
    """Copy values into all parameters of a module, those of one child excepted."""
    own = {n: p for n, p in module.named_parameters() if beside is None or not n.startswith(f"{beside}.")}
    missing = own.keys() ^ values.keys()
    assert not missing, f"initial values and parameters differ: {sorted(missing)}"
    for name, parameter in own.items():
        parameter.copy_(values[name].view(parameter.shape))


def parameter_groups(model: nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """The model's parameters as groups for ``torch.optim.AdamW``, as the published recipe trains them.

    Matrices (``.weight`` with two axes, embedding and head among them, and ``TimeMixing.decayed``) decay;
    decays and bonuses of the recurrence learn faster (``TimeMixing.lr_scale``); all else has neither.

    Args:
        model: an RWKV or a rival, or a module that holds one or more of its blocks.
        weight_decay: of the matrices.

    Returns:
        Groups with "params", "weight_decay", "lr_scale" (by which the schedule multiplies the learning rate)
        and "name", in a fixed order. Parameters that need no gradient are left out.
    """
    scales: dict[int, float] = {}
    decayed: set[int] = set()
    for module in model.modules():
        if isinstance(module, TimeMixing):
            own = dict(module.named_parameters())
            scales |= {id(own[name]): scale for name, scale in module.lr_scale.items()}
            decayed |= {id(own[name]) for name in module.decayed}

    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    for name, parameter in trained:
        scale = scales.get(id(parameter), 1.0)
        decays = (name.endswith(".weight") and parameter.dim() == 2) or id(parameter) in decayed
        group = groups.setdefault(
            (scale, decays),
            {
                "params": [],
                "weight_decay": weight_decay if decays else 0.0,
                "lr_scale": scale,
                "name": f"{'matrices' if decays else 'vectors'} x{scale:g}",
            },
        )
        group["params"].append(parameter)

    counted = [id(parameter) for group in groups.values() for parameter in group["params"]]
    assert len(counted) == len(set(counted)) == len({id(p) for _, p in trained})
    return [groups[key] for key in sorted(groups)]
