"""How far a recurrence is from the sequential loop in float64: y, the state after, and every gradient.

And how far a step of decoding is from the model in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy

import torch
from torch import Tensor

from benchmarks.gpu import models
from benchmarks.gpu.recurrences import call, implementation_of, inputs_of, leaves, state_of
from benchmarks.gpu.setting import Fact, Setting, decoding_of
from benchmarks.gpu.timing import apart, generator, uninitialized_is_nan
from benchmarks.report import Figure
from rookery.generate.batch.steps import StepRecorder
from rookery.state import State

__all__ = ["FORWARD", "GRADIENT", "STATE", "errors", "measure", "measure_step"]

FORWARD, STATE, GRADIENT = "forward error", "final state error", "worst gradient error"

# Tokens of each stream: the last one reads what the step wrote of all others.
_STEPS = 3


def measure(setting: Setting, *, recurrence: str, dtype: str, head_size: int) -> Iterator[Figure | Fact]:
    """Errors relative to the norm, of random inputs with an initial state and documents that start inside.

    Both sides get the same inputs, rounded to the dtype; y and gradients are of that dtype, states float32.
    """
    kind = getattr(torch, dtype)
    B, T, H = setting.shapes.checked
    implementation = implementation_of(recurrence, setting.device, kind, T)
    yield Fact(name=f"implementation of {recurrence}", value=implementation)
    found = errors(recurrence, (B, T, H, head_size), kind, implementation, generator(setting))
    for what, error in found.items():
        yield Figure(f"{recurrence} {what}, {_short(dtype)}, head size {head_size}", error, "of the norm")


def errors(
    recurrence: str,
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    implementation: str,
    random: torch.Generator,
) -> dict[str, float]:
    """`FORWARD`, `STATE` and `GRADIENT` -> the error, for inputs of B, T, H, K."""
    B, T, H, K = shape
    inputs = inputs_of(recurrence, B, T, H, K, dtype=dtype, generator=random)
    inputs.append(state_of(recurrence, B, H, K, generator=random))
    starts = torch.rand((B, T), generator=random, device=random.device) < 3 / T
    ours = _run(recurrence, leaves(inputs), starts, implementation, random.initial_seed(), poisoned=True)
    exact = leaves(inputs, torch.float64)
    wanted = _run(recurrence, exact, starts, "reference", random.initial_seed(), poisoned=False)
    return {
        FORWARD: apart(ours[0], wanted[0]),
        # The maximum of wkv4's state may be any number: what it stands for is compared.
        STATE: apart(_meaning(recurrence, ours[1]), _meaning(recurrence, wanted[1])),
        GRADIENT: max(apart(found, exactly) for found, exactly in zip(ours[2], wanted[2], strict=True)),
    }


def measure_step(setting: Setting, *, size: str, dtype: str, streams: int) -> Iterator[Figure | Fact]:
    """Errors relative to the norm, of the logits of a step after others and of the state after it.

    Both sides have the same weights, rounded to the dtype, and begin with a random state. The step is
    recorded as for decoding.
    """
    config, random = setting.shapes.models[size], generator(setting)
    model = models.rwkv(config, setting.device, random).to(getattr(torch, dtype)).requires_grad_(False)
    tokens = torch.randint(config.vocab_size, (streams, _STEPS), generator=random, device=setting.device)
    before = State(
        *(
            0.5 * torch.randn(part.shape, generator=random, device=setting.device).to(part)
            for part in model.initial_state(streams)
        )
    )
    memory, ids = State(*(part.clone() for part in before)), tokens[:, 0].clone()
    logits = torch.empty(streams, config.vocab_size, dtype=model.emb.weight.dtype, device=setting.device)
    recorder = StepRecorder(model)
    name = f"{decoding_of(size, streams)}, {_short(dtype)}"
    yield Fact(name=f"{name}: step", value=recorder.implementation(streams) or "operators")
    read = recorder.record(ids, memory, logits)
    # Recording has read tokens already.
    for here, part in zip(memory, before, strict=True):
        here.copy_(part)
    for each in tokens.T:
        ids.copy_(each)
        read()
    exact = deepcopy(model).double()
    with torch.no_grad():
        wanted, after = exact(tokens, State(*(part.double() for part in before)), last_only=True)
    yield Figure(f"{name}: logits error", apart(logits, wanted[:, 0]), "of the norm")
    yield Figure(f"{name}: final state error", apart(memory.wkv, after.wkv), "of the norm")


def _run(
    name: str, tensors: list[Tensor], starts: Tensor, implementation: str, seed: int, *, poisoned: bool
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """y, the state after, and the gradients of a random sum of both to all inputs and the state before."""
    *inputs, state = tensors
    if poisoned:
        with uninitialized_is_nan():
            return _run(name, tensors, starts, implementation, seed, poisoned=False)
    y, after = call(name, inputs, implementation, state, starts)
    random = torch.Generator(y.device).manual_seed(seed)
    # A gradient that both sides see the same: of the narrow dtype.
    dy = torch.randn(y.shape, generator=random, device=y.device).bfloat16().to(y.dtype)
    outputs, gradients = [y], [dy]
    if name != "wkv4":
        # wkv4's state is a numerator and a denominator over the same maximum, which is no smooth function.
        outputs.append(after)
        gradients.append(torch.randn(after.shape, generator=random, device=y.device).to(after.dtype))
    return y, after, list(torch.autograd.grad(outputs, tensors, gradients))


def _meaning(name: str, state: Tensor) -> Tensor:
    if name != "wkv4":
        return state
    numerator, denominator, maximum = state.double().unbind(1)
    return torch.stack((numerator / denominator, denominator.log() + maximum))


def _short(dtype: str) -> str:
    return {"bfloat16": "bf16", "float32": "fp32"}[dtype]
