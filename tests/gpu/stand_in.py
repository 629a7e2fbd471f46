"""A stand-in for a GPU: torch's device type "cuda" on a machine without one, computed by the CPU.

`device.cpp` makes the device, as far as torch's operators, autograd and autocast go; here is what code calls
of ``torch.cuda``. Triton interprets kernels, which round as tensor cores do. So what runs on a GPU runs on a
CPU, down to CUDA graphs, and what a GPU alone would refuse shows: tensors that were left on another device,
operators that have no kernel, waiting for the device in what is recorded as a graph, reading memory that
nobody wrote. It measures nothing.
"""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from types import SimpleNamespace
from typing import Any

SOURCE = Path(__file__).with_name("device.cpp")
BUILT = Path(__file__).resolve().parents[2] / "build" / "stand_in"

_COMPILER = os.environ.get("CXX", "g++")

# As a data sheet is found by.
NAME = "a stand-in for an H100"

_PROPERTIES = SimpleNamespace(
    name=NAME, major=9, minor=0, total_memory=80 << 30, multi_processor_count=132, L2_cache_size=50 << 20
)

# What was entered and registered stays so as long as these live.
_FOR_GOOD = ExitStack()
_LIBRARIES: list[Any] = []


def why_not() -> str | None:
    """What keeps this machine from having the stand-in; None if nothing does."""
    if sys.platform != "linux" or which(_COMPILER) is None:
        return f"the stand-in for a GPU is for Linux, and is compiled by {_COMPILER}"
    if (_torch_folder() / "lib" / "libtorch_cuda.so").exists():
        return (
            "there is no GPU, and this build of torch has CUDA itself, which leaves no place for a stand-in"
        )
    return None


def load(*, disguised: bool = False) -> None:
    """Give this process the device. Nothing may have imported torch yet, which asks once what there is.

    Args:
        disguised: keep from the package that Triton interprets kernels, so that they run on "cuda" alone.
    """
    if "torch" in sys.modules:
        raise RuntimeError("torch was imported before the stand-in for a GPU")
    os.environ["TRITON_INTERPRET"] = "1"
    torch_folder = _torch_folder()
    for name in ("libtorch_global_deps.so", "libc10.so", "libtorch_cpu.so"):
        ctypes.CDLL(str(torch_folder / "lib" / name), mode=ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(_build(torch_folder)))
    if disguised:
        _disguise()
    _fill_in()


def _disguise() -> None:
    """The package finds out when it is imported, and asks again later."""
    import_module("triton.runtime.interpreter")
    os.environ["TRITON_INTERPRET"] = "0"
    shared: Any = import_module("rookery.ops.triton")
    os.environ["TRITON_INTERPRET"] = "1"
    shared.interpreting = lambda: False


def _torch_folder() -> Path:
    found = find_spec("torch")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent


def _build(torch_folder: Path) -> Path:
    """Compile the device, once for each version of it and of torch."""
    version = (torch_folder / "version.py").read_bytes()
    library = BUILT / f"{hashlib.sha256(SOURCE.read_bytes() + version).hexdigest()[:16]}.so"
    if not library.exists():
        BUILT.mkdir(parents=True, exist_ok=True)
        made = library.with_suffix(f".{os.getpid()}")
        command = [_COMPILER, "-std=c++20", "-fPIC", "-shared", str(SOURCE), "-o", str(made)]
        folders = [f"-I{torch_folder / 'include'}", f"-L{torch_folder / 'lib'}"]
        subprocess.run([*command, *folders, "-lc10", "-ltorch_cpu"], check=True)
        made.replace(library)
    return library


class _Stream:
    """There is one, and what it is given is done at once."""

    cuda_stream = 0

    def __init__(self, device: Any = None, priority: int = 0):
        pass

    def wait_stream(self, stream: _Stream) -> None:
        pass


class _Event:
    def __init__(self, enable_timing: bool = False):
        self._seconds = 0.0

    def record(self, stream: Any = None) -> None:
        self._seconds = time.perf_counter()

    def synchronize(self) -> None:
        from tests.gpu.graphs import refuse_while_recording

        refuse_while_recording("waiting for an event")

    def elapsed_time(self, end: _Event) -> float:
        return (end._seconds - self._seconds) * 1e3


@contextmanager
def _nothing(*_: Any) -> Iterator[None]:
    yield


def _fill_in() -> None:
    """What of ``torch.cuda`` reaches for CUDA."""
    import torch

    from benchmarks.gpu.rounding import tensor_cores
    from tests.gpu.graphs import Graph, recording, refuse_while_recording, watch_launches
    from tests.ops.interpreter import quick

    stream = _Stream()
    for name, value in {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_bf16_supported": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_name": lambda device=None: NAME,
        "get_device_properties": lambda device=None: _PROPERTIES,
        "device": _nothing,
        "stream": _nothing,
        "Stream": _Stream,
        "current_stream": lambda device=None: stream,
        "Event": _Event,
        "synchronize": lambda device=None: refuse_while_recording("waiting for the device"),
        "empty_cache": lambda: None,
        "get_rng_state": lambda device=None: torch.empty(0, dtype=torch.uint8),
        "set_rng_state": lambda state, device=None: None,
        "max_memory_allocated": lambda device=None: 0,
        "reset_peak_memory_stats": lambda device=None: None,
        "CUDAGraph": Graph,
        "graph": recording,
        "graph_pool_handle": lambda: (0, 0),
    }.items():
        assert hasattr(torch.cuda, name), name
        setattr(torch.cuda, name, value)
    torch.version.cuda = "13.0"
    watch_launches()
    _FOR_GOOD.enter_context(tensor_cores())
    _FOR_GOOD.enter_context(quick())
    atexit.register(_FOR_GOOD.close)
    _add_wider_products()


def _add_wider_products() -> None:
    """Products of 16-bit matrices in float32, which torch has on GPUs alone, with what they ask for there."""
    import torch
    from torch import Tensor

    def addmm(total: Tensor, left: Tensor, right: Tensor, out_dtype: torch.dtype, **scales: float) -> Tensor:
        totals = (out_dtype, left.dtype) if torch.__version__ >= (2, 11) else (left.dtype,)
        if total.dtype not in totals or left.dtype != right.dtype:
            raise RuntimeError(f"addmm of {total.dtype}, {left.dtype} and {right.dtype}")
        return torch.addmm(total.to(out_dtype), left.to(out_dtype), right.to(out_dtype), **scales)

    def addmm_out(*given: Any, out: Tensor, **scales: float) -> Tensor:
        return out.copy_(addmm(*given, **scales))

    def mm(left: Tensor, right: Tensor, out_dtype: torch.dtype) -> Tensor:
        return left.to(out_dtype) @ right.to(out_dtype)

    for name, function in (("addmm.dtype", addmm), ("addmm.dtype_out", addmm_out), ("mm.dtype", mm)):
        _LIBRARIES.append(torch.library.Library("aten", "IMPL", "CUDA"))
        _LIBRARIES[-1].impl(name, function)
