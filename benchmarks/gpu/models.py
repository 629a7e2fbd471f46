"""Models of random weights, made on the device: what is timed does not depend on what they have learned."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.gpt import GPT
from rookery.config import ModelConfig
from rookery.models import RWKV, parameter_groups

__all__ = ["gpt", "optimizer_of", "rwkv"]


def rwkv(config: ModelConfig, device: str, generator: torch.Generator) -> RWKV:
    """Weights of a size that keeps activations near 1, none of them zero, so that no gradient is.

    The published initialisation draws orthogonal matrices on the CPU, for which a large model takes minutes.
    """
    with torch.device("meta"):
        model = RWKV(config)
    model.to_empty(device=device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            _fill(name.rpartition(".")[2], name, parameter, generator)
    return model


def _fill(short: str, name: str, parameter: torch.Tensor, generator: torch.Generator) -> None:
    if short == "bias":
        parameter.zero_()
    elif short == "weight" and parameter.dim() == 1:
        parameter.fill_(1.0)
    elif short.startswith("x_"):
        parameter.uniform_(0.0, 1.0, generator=generator)
    elif short == "w0":
        parameter.uniform_(-6.0, 0.0, generator=generator)
    elif parameter.dim() == 2 and name != "emb.weight":
        parameter.normal_(std=max(parameter.shape) ** -0.5, generator=generator)
    else:
        parameter.normal_(std=0.5, generator=generator)


def gpt(config: ModelConfig, device: str) -> GPT:
    """A GPT as deep and wide, of torch's own initial values."""
    with torch.device(device):
        return GPT(
            vocab_size=config.vocab_size,
            width=config.width,
            num_layers=config.num_layers,
            head_size=config.head_size,
        )


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW as training has it; for a model of ours in the recipe's groups."""
    if not isinstance(model, RWKV):
        return torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
    groups = [
        {"params": group["params"], "weight_decay": group["weight_decay"]}
        for group in parameter_groups(model, weight_decay=0.1)
    ]
    return torch.optim.AdamW(groups, lr=1e-4, fused=True)
