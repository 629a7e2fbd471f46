"""Looking inside a model while it reads a text: surprise, decay, the state, how far back a change is felt.

    inside = look_inside(model, tokens)        # data: arrays in dataclasses
    write_page(inside, model.tokenizer, "page.html")

``measure.py`` and ``influence.py`` measure, ``trace.py`` watches the layers from outside; ``draw.py`` and
``report.py`` show.
"""

from __future__ import annotations

from rookery.evaluate.look.influence import Influence
from rookery.evaluate.look.measure import Inside, Surprise, look_inside, start_token, text_tokens
from rookery.evaluate.look.report import to_json, write_page

__all__ = [
    "Influence",
    "Inside",
    "Surprise",
    "look_inside",
    "start_token",
    "text_tokens",
    "to_json",
    "write_page",
]
