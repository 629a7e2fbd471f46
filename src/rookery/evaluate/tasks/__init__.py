"""Generated tasks of memory and state tracking, each a pure function of (seed, index, size).

    from rookery.evaluate.tasks import TASKS
    tokens, targets = TASKS["parity"].example(0, 0, 16, None)

``task.py`` says what a task is; every other file is one task, or a few of one kind, and a row of ``TASKS``.
"""

from __future__ import annotations

from rookery.evaluate.tasks.copying import COPY, REVERSE
from rookery.evaluate.tasks.groups import A5, S5, Z60
from rookery.evaluate.tasks.parity import PARITY
from rookery.evaluate.tasks.passkey import PASSKEY
from rookery.evaluate.tasks.recall import MQAR
from rookery.evaluate.tasks.task import TEST_SEED, Example, Known, Task, asked, batch

__all__ = ["TASKS", "TEST_SEED", "Example", "Known", "Task", "asked", "batch"]

TASKS: dict[str, Task] = {task.name: task for task in (MQAR, PASSKEY, COPY, REVERSE, PARITY, Z60, A5, S5)}
"""Every task, by its name."""
