"""The memory of this process: what it has now, and the most it had."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

__all__ = ["peak_bytes", "reset_peak", "resident_bytes"]

_STATUS = Path("/proc/self/status")


def resident_bytes() -> int | None:
    """Bytes in memory now; None where the system does not say."""
    return _field("VmRSS")


def peak_bytes() -> int | None:
    """The most bytes in memory since the process began, or since ``reset_peak``; None where the system does
    not say."""
    peak = _field("VmHWM")
    if peak is not None:
        return peak
    with suppress(ImportError):
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
    return None


def reset_peak() -> None:
    """Let the peak begin anew from what there is now, where the system can (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _field(name: str) -> int | None:
    with suppress(OSError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return None
