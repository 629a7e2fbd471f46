"""Fixtures that all tests share."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# A shell ignores Ctrl-C for what it runs in the background, and processes inherit that; tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Another build of the extension, such as one with sanitizers, in place of the installed one.
if engine := os.environ.get("ROOKERY_ENGINE"):
    spec = importlib.util.spec_from_file_location("rookery.native._engine", engine)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[spec.name])

# Where there is no GPU, Triton interprets its kernels, if it is asked to before it is imported.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real text and small official models; the folder lies beside the checkout and is not in it."""
    if not SHARED_DATA.is_dir():
        reason = f"{SHARED_DATA} is absent: it holds the data that this test reads"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return SHARED_DATA


def _normal(centre: float, spread: float) -> Callable[[Any, Any], Any]:
    import torch

    return lambda p, g: centre + spread * torch.randn(p.shape, generator=g)


def _uniform(low: float, high: float) -> Callable[[Any, Any], Any]:
    import torch

    return lambda p, g: low + (high - low) * torch.rand(p.shape, generator=g)


def _map(inputs: int) -> Callable[[Any, Any], Any]:
    """A matrix that keeps the variance of its input, which has the axis ``inputs``."""
    import torch

    return lambda p, g: torch.randn(p.shape, generator=g) / p.shape[inputs] ** 0.5


def _draws() -> dict[str, Callable[[Any, Any], Any]]:
    """The first pattern that a parameter's name matches says how it is drawn."""
    return {
        r"emb\.weight$": _normal(0, 1),
        r"ln\w+\.weight$": _normal(1, 0.2),
        r"ln\w+\.bias$": _normal(0, 0.2),
        r"\.weight$": _map(-1),
        r"(\.[wavg][12]|_w[12])$": _map(-2),
        r"\.time_decay$": _uniform(-5, 0.5),
        r"\.w0$": _uniform(-6, 1),
        r"\.time_first$": _normal(-0.5, 0.5),
        r"\.time_faaaa$": _normal(0, 0.5),
        r"\.(time_mix|time_maa|x)_\w$": _uniform(0, 1),
        r"\.(k_k|k_a)$": _normal(1, 0.3),
        r"\.(a0|v0|r_k)$": _normal(0, 0.5),
    }


@pytest.fixture(scope="session")
def random_model() -> Callable[..., Any]:
    """``random_model(config, seed=0, dtype=torch.float32)``: a torch model; all its weights are random,
    none idle, so that a mistake about any one of them shows.
    """
    import torch

    from rookery.models import RWKV

    draws = _draws()

    def make(config: Any, seed: int = 0, dtype: Any = torch.float32) -> RWKV:
        model = RWKV(config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                draw = next(draw for pattern, draw in draws.items() if re.search(pattern, name))
                parameter.copy_(draw(parameter, generator))
        return model.to(dtype)

    return make


@pytest.fixture
def watched_kernels() -> Iterator[None]:
    """Fails a test whose kernels, run by Triton's interpreter, would go wrong on a GPU alone.

    Of what is found, see ``tests/ops/hazards.py``.
    """
    from rookery.ops.triton import INSTALLED, interpreting

    if not (INSTALLED and interpreting()):
        yield
        return
    from tests.ops.hazards import watching
    from tests.ops.interpreter import quick

    with quick(), watching() as found:
        yield
    assert not found, "\n".join(found)
