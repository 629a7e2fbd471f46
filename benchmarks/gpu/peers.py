"""The recurrences of fla (flash-linear-attention), called with our inputs, and tuned in little time.

fla has none for RWKV-5: it is RWKV-6 with the same decay at every token. Its scale of the receptance, by
default 1 / sqrt(K), is switched off, since RWKV has none.
"""

from __future__ import annotations

import contextlib
import functools
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from torch import Tensor

__all__ = ["NAMES", "RWKV7_LOWER_BOUND", "load", "tune_quickly"]

Call = Callable[..., Tensor]

# Of the logarithm of the decay, in bfloat16: with it fla may take longer chunks.
RWKV7_LOWER_BOUND = -0.61

NAMES = {
    "wkv7": ("chunk_rwkv7, bounded decay", "chunk_rwkv7"),
    "wkv6": ("chunk_rwkv6",),
    "wkv5": ("chunk_rwkv6, constant decay",),
    "wkv4": ("fused_recurrent_rwkv4",),
}
"""What is measured of fla; where there are several, the fastest one counts."""


def load(name: str) -> Call:
    """One of them: takes the inputs of our recurrence in their order, gives y.

    Raises:
        ImportError: fla is not installed.
    """
    with warnings.catch_warnings():
        # At import fla says what it has not found: a GPU, optional packages.
        warnings.simplefilter("ignore")
        if name.startswith("chunk_rwkv7"):
            from fla.ops.rwkv7 import chunk_rwkv7

            options = {"lower_bound": RWKV7_LOWER_BOUND} if "bounded" in name else {}
            return rwkv7(functools.partial(chunk_rwkv7, scale=1.0, **options))
        if name.startswith("chunk_rwkv6"):
            from fla.ops.rwkv6 import chunk_rwkv6

            unscaled: Any = functools.partial(chunk_rwkv6, scale=1.0)
            return rwkv6(unscaled)
        from fla.ops.rwkv4 import fused_recurrent_rwkv4

        return rwkv4(fused_recurrent_rwkv4)


def rwkv7(function: Callable[..., tuple[Tensor, Any]]) -> Call:
    """Its signature is (r, w, k, v, a, b), where w is the logarithm of the decay."""

    def run(r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return function(r, log_w, k, v, a, b)[0]

    return run


def rwkv6(function: Callable[..., tuple[Tensor, Any]]) -> Call:
    """Its signature is (r, k, v, w, u); a decay [H, K] becomes one for each token."""

    def run(r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, u: Tensor) -> Tensor:
        return function(r, k, v, log_w.expand(r.shape), u)[0]

    return run


def rwkv4(function: Callable[..., tuple[Tensor, Any]]) -> Call:
    """Its signature is (w, u, k, v, state); the decay is exp(-exp(w)), the state [B, 3, 1, A]."""

    def run(log_w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
        state = k.new_zeros(k.shape[0], 3, 1, k.shape[2])
        state[:, 2] = -1e30
        return function((-log_w).log(), u, k, v, state)[0]

    return run


def tune_quickly(*, rehearsal: bool) -> None:
    """Have Triton's autotuner compile all configurations of a kernel at once, and time each for 10 ms.

    fla's kernels try some hundred configurations; one after the other, with 125 ms of timing each, that takes
    longer than the whole benchmark has. What is tried and what is chosen by stay the same.

    Args:
        rehearsal: only compile: the timings are of one run, and are not kept for later processes.
    """
    if rehearsal:
        os.environ["FLA_CACHE_RESULTS"] = "0"  # before fla is imported
    from triton.runtime.autotuner import Autotuner
    from triton.testing import do_bench

    warm_up, repeat = (0, 1) if rehearsal else (3, 10)
    quick = functools.partial(do_bench, warmup=warm_up, rep=repeat)
    Autotuner.do_bench = property(lambda self: quick)
    pruned = Autotuner.prune_configs

    def prune_configs(self: Any, kwargs: dict[str, Any]) -> list[Any]:
        configs = pruned(self, kwargs)
        _compile(self, configs, kwargs)
        return configs

    Autotuner.prune_configs = prune_configs


def _compile(tuner: Any, configs: list[Any], kwargs: dict[str, Any]) -> None:
    """All configurations of a kernel, on all cores. What does not compile is left to the autotuner."""
    try:
        from triton import AsyncCompileMode
    except ImportError:  # an older Triton: one after the other
        return
    threads = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
    with threads, AsyncCompileMode(threads, ignore_errors=True):
        for config in configs:
            with contextlib.suppress(Exception):
                tuner.fn.run(*tuner.nargs.values(), **{**kwargs, **config.all_kwargs(), "warmup": True})
