"""What adapters, recomputation and compilation do to a model from outside, without its knowing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from rookery.config import VERSIONS, ModelConfig, Version, sized
from rookery.models import RWKV

every_version = pytest.mark.parametrize("version", VERSIONS)


def config_of(version: Version) -> ModelConfig:
    heads = {} if version == "4" else {"head_size": 8}
    return sized(version, vocab_size=37, width=24, num_layers=3, **heads)


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(37, (2, 41), generator=torch.Generator().manual_seed(0))


class Recomputed(nn.Module):
    """A block that keeps its inputs alone, and runs again for the gradients."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = block

    def forward(self, *arguments, **options):
        return checkpoint(self.block, *arguments, use_reentrant=False, **options)


def gradients(model: RWKV, tokens: Tensor) -> list[Tensor]:
    logits, _ = model(tokens[:, :-1])
    F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    return [parameter.grad for parameter in model.parameters()]


@every_version
def test_recomputed_blocks_give_the_same_gradients(random_model, version: Version, tokens: Tensor):
    """Values that cross layers go through the blocks' arguments, so that recomputing sees them."""
    wanted = gradients(random_model(config_of(version)), tokens)
    model = random_model(config_of(version))
    model.blocks = nn.ModuleList(Recomputed(block) for block in model.blocks)
    for got, want in zip(gradients(model, tokens), wanted, strict=True):
        torch.testing.assert_close(got, want)


class Adapted(nn.Module):
    """A frozen matrix plus one of low rank, as LoRA has it."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(2, linear.in_features))
        self.up = nn.Parameter(torch.zeros(linear.out_features, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + x @ self.down.T @ self.up.T


@every_version
def test_any_linear_map_can_be_adapted(random_model, version: Version, tokens: Tensor):
    model = random_model(config_of(version))
    wanted, _ = model(tokens)
    linears = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Linear)
    ]
    for parent, name, child in linears:
        setattr(parent, name, Adapted(child))
    logits, _ = model(tokens)
    torch.testing.assert_close(logits, wanted)
    logits.square().mean().backward()
    for module in model.modules():
        if isinstance(module, Adapted):
            assert module.linear.weight.grad is None
            assert module.up.grad.abs().max() > 0


@torch.no_grad()
@pytest.mark.parametrize("version", ["4", "5.2", "6", "7"])
def test_one_graph_holds_the_whole_model(random_model, version: Version, tokens: Tensor):
    torch._dynamo.reset()
    model = random_model(config_of(version))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    wanted, state = model(tokens[:, :3])
    got, _ = compiled(tokens[:, :3], implementation="reference")
    torch.testing.assert_close(got, wanted)
    again, _ = compiled(tokens[:, 3:6], state, implementation="reference")
    torch.testing.assert_close(again, model(tokens[:, 3:6], state)[0])
