"""A cell of text: one model learns one data set, then is asked how much context helps it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rookery.errors import ConfigError, DataError, StateError
from rookery.evaluate.compare.cells import Cell, CompareFolder, Result
from rookery.evaluate.compare.config import CompareConfig
from rookery.evaluate.compare.models import describe, make_model
from rookery.evaluate.compare.plan import VALIDATIONS
from rookery.evaluate.compare.training import fit_model
from rookery.files import atomic_write
from rookery.tokenizers import from_spec
from rookery.train.config import TrainConfig
from rookery.train.data import TokenStream, TrainingOrder, bytes_of_tokens

__all__ = [
    "Texts",
    "context_windows",
    "losses_at",
    "losses_by_position",
    "position_buckets",
    "run_text",
    "train_config",
    "validation_steps",
]


# Tokens that a model reads in one call when it is tested: the state is carried from call to call.
_SPAN = 1024
# Tokens of all rows of such a call together.
_CALL = 8192


class Texts:
    """The tokens of one data set, as the run's work folder keeps them."""

    def __init__(self, path: Path):
        with np.load(path, allow_pickle=False) as file:
            parts = {name: file[name] for name in file.files}
        self.training = _stream(parts, "training")
        self.validation = _stream(parts, "validation")
        self.tokenizer = from_spec(_spec(parts))

    @staticmethod
    def save(path: Path, training: TokenStream, validation: TokenStream, spec: dict) -> None:
        """Write what the constructor reads."""
        arrays: dict[str, Any] = {"spec": np.array(json.dumps(spec))}
        for name, stream in (("training", training), ("validation", validation)):
            arrays[f"{name}_tokens"] = stream.tokens
            arrays[f"{name}_separated"] = np.array(stream.separated)
            if stream.starts is not None:
                arrays[f"{name}_starts"] = stream.starts
        with atomic_write(path) as file:
            np.savez(file, **arrays)


def _stream(parts: dict[str, np.ndarray], name: str) -> TokenStream:
    return TokenStream(
        parts[f"{name}_tokens"], parts.get(f"{name}_starts"), separated=bool(parts[f"{name}_separated"])
    )


def _spec(parts: dict[str, np.ndarray]) -> dict:
    return json.loads(str(parts["spec"]))


def train_config(config: CompareConfig, *, tokens: int, seed: int, name: str) -> TrainConfig:
    """The recipe of a model of text."""
    steps = -(-tokens // (config.batch * config.context))
    return TrainConfig(
        data=(name,),
        tokens=tokens,
        context=config.context,
        batch=config.batch,
        learning_rate=config.learning_rate,
        warmup_steps=min(config.warmup_steps, steps // 10),
        weight_decay=config.weight_decay,
        seed=seed,
        device="cpu",
    )


def context_windows(stream: TokenStream, *, length: int, limit: int, name: str) -> np.ndarray:
    """Windows of held-out text that each lie within one document, [M, length + 1] int64.

    So every token has as much text of its own document before it as its position says.

    Args:
        length: tokens to read.
        limit: about the most tokens to read, all windows together; at least one window is taken.

    Raises:
        DataError: no document is that long.
    """
    documents = stream.documents()
    windows = [
        document[first : first + length + 1]
        for document in documents
        for first in range(0, len(document) - length, length)
    ]
    if not windows:
        longest = max(map(len, documents))
        raise DataError(
            f"{name}: a context of {length} needs a held-out document of {length + 1} tokens, and the "
            f"longest has {longest}; give more data, hold out more of it, or choose smaller contexts"
        )
    most = max(limit // length, 1)
    chosen = np.linspace(0, len(windows) - 1, min(most, len(windows))).round().astype(int)
    return np.stack([windows[i] for i in chosen]).astype(np.int64)


@torch.no_grad()
def losses_at(model: nn.Module, windows: np.ndarray, context: int) -> np.ndarray:
    """The loss of every token of the windows but the first, read with a given context.

    Each window is cut into pieces of ``context`` tokens; the model begins each with a new state and carries
    the state through it. So all contexts are measured on the same tokens.

    Returns:
        [M, length] nats.
    """
    M, length = len(windows), windows.shape[1] - 1
    inputs = torch.from_numpy(windows[:, :-1].reshape(-1, context))
    targets = torch.from_numpy(windows[:, 1:].reshape(-1, context))
    span = min(context, _SPAN)
    rows = max(_CALL // span, 1)
    parts = []
    for first in range(0, len(inputs), rows):
        state, losses = None, []
        for begin in range(0, context, span):
            piece = slice(begin, begin + span)
            logits, state = model(inputs[first : first + rows, piece], state)
            losses.append(_losses(logits, targets[first : first + rows, piece]))
        parts.append(torch.cat(losses, 1))
    return torch.cat(parts).view(M, length).numpy()


def _losses(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.transpose(1, 2).float(), targets, reduction="none")


def validation_steps(steps: int) -> frozenset[int]:
    """After which of the steps to validate: at equal ratios from a fortieth to the last."""
    return frozenset(np.geomspace(max(steps / 40, 1), steps, VALIDATIONS).round().astype(int).tolist())


def position_buckets(contexts: Sequence[int]) -> list[tuple[int, int]]:
    """Positions below the longest context in pieces (first, one past the last) that double every two pieces.

    None goes across a context. The first has four positions.
    """
    length = contexts[-1]
    halves = range(2 * length.bit_length() + 1)
    edges = sorted({min(round(4 * 2 ** (half / 2)), length) for half in halves} | set(contexts))
    return list(zip([0, *edges[:-1]], edges, strict=True))


def losses_by_position(losses: dict[int, np.ndarray]) -> list[dict[str, float]]:
    """The mean loss at each piece of positions, from the readings of all contexts.

    A position is looked up in the shortest context that has it: what a token is predicted from is the same
    as in longer ones, and there are as many more of it as the context is shorter.

    Args:
        losses: context -> [M, length], as ``losses_at`` gives them.
    """
    contexts = sorted(losses)
    found = []
    for first, last in position_buckets(contexts) if contexts else []:
        context = next(each for each in contexts if each >= last)
        pieces = losses[context].reshape(-1, context)
        found.append({"first": first, "last": last, "loss": float(pieces[:, first:last].mean())})
    return found


def run_text(
    folder: CompareFolder,
    config: CompareConfig,
    cell: Cell,
    *,
    tokens: int,
    progress: Callable[[float, str], None] = lambda part, text: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Result:
    """Train and test one model of one text.

    Raises:
        TrainingError: it diverged.
        Interrupted: it was stopped, and is saved.
    """
    texts = Texts(folder.tokens_path(cell.subject))
    recipe = train_config(config, tokens=tokens, seed=cell.seed, name=cell.subject)
    order = TrainingOrder(
        texts.training, context=config.context, batch=config.batch, seed=cell.seed, name=cell.subject
    )
    length = config.contexts[-1]
    windows = context_windows(texts.validation, length=length, limit=config.valid_tokens, name=cell.subject)
    watched = context_windows(
        texts.validation, length=config.context, limit=config.valid_tokens // 4, name=cell.subject
    )
    model = make_model(config, cell.mixer, texts.tokenizer.vocab_size, seed=cell.seed)
    assert recipe.total_steps is not None
    history = fit_model(
        model,
        recipe,
        order.rows,
        checkpoint=folder.checkpoint_path(cell),
        validate_at=validation_steps(recipe.total_steps),
        validate=lambda: float(losses_at(model, watched, config.context).mean()),
        progress=lambda part, text: progress(0.9 * part, text),
        stopped=stopped,
    )
    losses: dict[int, np.ndarray] = {}
    reasons: dict[str, str] = {}
    for number, context in enumerate(config.contexts):
        progress(0.9 + 0.1 * number / len(config.contexts), f"context {context}")
        try:
            losses[context] = losses_at(model, windows, context)
        except (ConfigError, StateError) as error:
            # A mixer may have a longest context; it says so itself.
            reasons[str(context)] = str(error)
    bits_per_nat = _bits_per_nat(windows, bytes_of_tokens(texts.tokenizer))
    means = {context: float(each.mean()) for context, each in losses.items()}
    return {
        "status": "done",
        **describe(model),
        "tokens": recipe.total_steps * recipe.tokens_per_step,
        "seconds": history.seconds,
        "bits_per_nat": bits_per_nat,
        "tested_tokens": int(windows.shape[0] * length),
        "contexts": [
            {"context": context, "loss": loss, "bits_per_byte": loss * bits_per_nat}
            for context, loss in means.items()
        ],
        "not_applicable": reasons,
        "positions": losses_by_position(losses),
        "validations": history.validations,
        "losses": history.losses,
        "step_seconds": history.step_seconds,
    }


def _bits_per_nat(windows: np.ndarray, token_bytes: np.ndarray) -> float:
    """What a nat per token is in bits per byte, on these tokens."""
    targets = windows[:, 1:]
    return targets.size / int(token_bytes[targets].sum()) / math.log(2)
