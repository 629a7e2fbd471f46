"""Freed memory stays with the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Counts the page faults of taking, filling and freeing 64 MB ten times, after ten that do not count: what
# lies between the first of them makes the heap grow a few times.
_PROGRAM = """
import resource, sys
import torch
from rookery.train.memory import keep_freed_memory
if "keep" in sys.argv:
    assert keep_freed_memory()
for _ in range(10):
    torch.ones(1 << 24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(1 << 24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts page faults as Linux does")
def test_freed_memory_is_used_again():
    faults = {
        option: int(subprocess.check_output([sys.executable, "-c", _PROGRAM, option]))
        for option in ("keep", "give back")
    }
    assert faults["keep"] < 100
    # 64 MB are at least 32 pages of 2 MB.
    assert faults["give back"] >= 10 * 32
