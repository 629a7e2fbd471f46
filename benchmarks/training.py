"""Steps of training, timed: RWKV-7 against a GPT of the same shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch.nn import functional

from benchmarks.gpt import GPT
from benchmarks.report import Figure, interleaved_medians
from rookery.config import ModelConfig, sized
from rookery.models import RWKV, init_weights, parameter_groups
from rookery.train.memory import keep_freed_memory

__all__ = ["VOCAB", "measure_against_gpt", "rwkv", "training_step"]

VOCAB = 256


def training_step(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, tokens: torch.Tensor, **options: object
) -> Callable[[], None]:
    """A closure that trains one step on ``tokens`` [B, T + 1]."""
    inputs, targets = tokens[:, :-1], tokens[:, 1:].flatten()

    def step() -> None:
        result = model(inputs, **options)
        logits = result[0] if isinstance(result, tuple) else result
        functional.cross_entropy(logits.flatten(0, 1), targets).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def rwkv(config: ModelConfig) -> tuple[RWKV, torch.optim.Optimizer]:
    """A fresh model by the published initialisation, with AdamW over its parameter groups."""
    model = RWKV(config)
    init_weights(model, seed=0)
    # Zero output matrices would hand the recurrence a gradient of zeros: time the general case.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2 and not parameter.any():
                parameter.normal_(std=0.02)
    groups = [
        {"params": group["params"], "weight_decay": group["weight_decay"]}
        for group in parameter_groups(model, weight_decay=0.1)
    ]
    return model, torch.optim.AdamW(groups, lr=1e-4, fused=True)


def measure_against_gpt(
    width: int,
    num_layers: int,
    contexts: Mapping[int, float | None],
    tokens_per_step: int,
    *,
    repeats: int = 7,
) -> list[Figure]:
    """Training speed of RWKV-7 over that of a GPT of the same shape; each context with its bound."""
    keep_freed_memory()  # as training does; for both sides
    figures = []
    config = sized("7", vocab_size=VOCAB, width=width, num_layers=num_layers)
    model, optimizer = rwkv(config)
    gpt = GPT(vocab_size=VOCAB, width=width, num_layers=num_layers)
    gpt_optimizer = torch.optim.AdamW(gpt.parameters(), lr=1e-4, fused=True)
    for context, bound in contexts.items():
        batch = max(1, tokens_per_step // context)
        tokens = torch.randint(VOCAB, (batch, context + 1), generator=torch.Generator().manual_seed(3))
        ours, theirs = interleaved_medians(
            [training_step(model, optimizer, tokens), training_step(gpt, gpt_optimizer, tokens)],
            repeats=repeats,
        )
        count = batch * context
        shape = f"D {width}, L {num_layers}, fp32, T {context}"
        figures.append(Figure(f"RWKV-7 training, {shape}", count / ours, "tok/s"))
        figures.append(Figure(f"GPT training, {shape}", count / theirs, "tok/s"))
        figures.append(Figure(f"RWKV-7 / GPT, {shape}", theirs / ours, "ratio", bound=bound))
    return figures
