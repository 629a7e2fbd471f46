"""What a fresh process takes of memory, once it has generated."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

__all__ = ["resident_bytes"]

# Imports what generating needs, and nothing that measuring does.
_GENERATE = """
import sys
from pathlib import Path
from rookery import checkpoints, native
from rookery.state import initial_state
path, threads, tokens = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
model = native.load(checkpoints.load(path), threads=threads)
pool = initial_state(model.config, 1)
logits = model.advance([(0, list(range(1, 65)))], pool)
for _ in range(tokens):
    logits = model.advance([(0, [int(logits[0].argmax())])], pool)
status = Path("/proc/self/status").read_text()
print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))
"""


def resident_bytes(path: Path, *, threads: int, tokens: int = 32) -> int:
    """Resident memory of a process that has loaded a file, read a prompt and generated; Linux only.

    Everything counts: Python, numpy, rookery, weights, state, and what of the file is mapped and in memory.
    """
    arguments = [sys.executable, "-c", _GENERATE, str(path), str(threads), str(tokens)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    return int(done.stdout) * 1024
