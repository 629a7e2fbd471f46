"""Training: a language model from text.

    from rookery.train import TrainConfig, train
    result = train(TrainConfig(data=("tinyshakespeare.txt",), tokens=2_000_000))

- ``config.py`` what a run is;  ``schedule.py`` its learning rate and its budget.
- ``documents.py`` text from files;  ``corpus.py`` tokens from text;  ``data.py`` rows of tokens, in order.
- ``loss.py``, ``optimizer.py``, ``evaluate.py``, ``loop.py`` the training itself.
- ``run_folder.py`` what is on the disk;  ``signals.py`` Ctrl-C.
- ``metrics.py``, ``plotting.py``, ``display.py`` what a person sees.

Importing this package imports no torch; ``train`` and ``resume`` do, at their first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rookery.errors import require
from rookery.train.config import TrainConfig

if TYPE_CHECKING:
    from rookery.train.loop import TrainResult, resume, train

__all__ = ["TrainConfig", "TrainResult", "resume", "train"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        require("torch", extra="train", purpose="Training")
        from rookery.train import loop

        return getattr(loop, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
