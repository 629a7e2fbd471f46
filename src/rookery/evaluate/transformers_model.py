"""Models of transformers (Pythia, OPT, BLOOM, ...) behind the interface that ours are measured through.

It needs torch and transformers, and is imported where such a model is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers
from torch.nn import functional as F

from rookery.errors import CheckpointError, ConfigError, DataError, TokenizerError
from rookery.evaluate.first_token import FirstToken
from rookery.evaluate.likelihood import Finished, Pair, Report, Scores

__all__ = ["TransformersReader"]

# Float32 logits of a batch: 256 MB.
_LOGITS_AT_ONCE = 1 << 26
# Tokens of a batch, padding among them.
_TOKENS_AT_ONCE = 4096
# For models that do not say how many positions they have.
_DEFAULT_LIMIT = 2048
_LIMITS = ("max_position_embeddings", "n_positions", "n_ctx", "seq_length")


class TransformersReader:
    """A ``rookery.evaluate.text.TextReader``.

    The first token is the tokenizer's own for the beginning of a text, or where it has none that of the end.

    Args:
        path: a folder, or a name on the hub.
        device: a torch device.
        dtype: float32 by default.
        threads: of torch, for the whole process.

    Raises:
        CheckpointError: there is no such model, or it is no causal language model.
        TokenizerError: it has no tokenizer, or this has no token for the beginning or the end of a text.
    """

    def __init__(
        self, path: str, *, device: str | None = None, dtype: str | None = None, threads: int | None = None
    ):
        if threads is not None:
            torch.set_num_threads(threads)
        kind = getattr(torch, dtype or "float32", None)
        if not isinstance(kind, torch.dtype):
            raise ConfigError(f"torch has no number type {dtype!r} for transformers' models")
        self.name = f"hf:{path}"
        # Bars of the library would cross ours.
        transformers.utils.logging.disable_progress_bar()
        try:
            model: Any = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=kind)
        except (OSError, ValueError) as error:
            raise CheckpointError(path, f"transformers cannot load it: {_first_line(error)}") from error
        try:
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(path)
        except (OSError, ValueError, KeyError) as error:
            raise TokenizerError(f"{path}: transformers finds no tokenizer: {_first_line(error)}") from error
        self._model: Any = model.eval().to(device or "cpu")
        first = next(
            (
                each
                for each in (self._tokenizer.bos_token_id, self._tokenizer.eos_token_id)
                if each is not None
            ),
            None,
        )
        if first is None:
            raise TokenizerError(f"{path}: the tokenizer has no token for the beginning or the end of a text")
        self.first_token = FirstToken(int(first), str(self._tokenizer.convert_ids_to_tokens(first)))
        config = self._model.config
        limits = [getattr(config, name) for name in _LIMITS if isinstance(getattr(config, name, None), int)]
        self.limit: int | None = limits[0] if limits else _DEFAULT_LIMIT

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, none added."""
        return self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def setting(self) -> dict[str, Any]:
        """What it is, and how many parameters it has."""
        return {
            "model": self.name,
            "type": self._model.config.model_type,
            "parameters": sum(p.numel() for p in self._model.parameters()),
            "dtype": str(self._model.dtype).removeprefix("torch."),
            "first_token": self.first_token.id,
            "transformers": transformers.__version__,
        }

    def score(
        self, pairs: Sequence[Pair], *, report: Report | None = None, finished: Finished | None = None
    ) -> list[Scores]:
        """Each pair by one pass over all of it, in batches of like lengths, padded at the end.

        Raises:
            ConfigError: a context or a continuation has no tokens.
            DataError: a pair is longer than the model's positions, or than memory.
        """
        order = sorted(range(len(pairs)), key=lambda i: _length(pairs[i]), reverse=True)
        for index, pair in enumerate(pairs):
            if not pair.context or not pair.continuation:
                raise ConfigError(f"pair {index} has a context or a continuation without tokens")
            if self.limit is not None and _length(pair) > self.limit:
                raise DataError(
                    f"{_length(pair)} tokens are more than the {self.limit} positions of {self.name}; "
                    "give a shorter text, or a window"
                )
        scores: dict[int, Scores] = {}
        total, done = sum(map(_length, pairs)), 0
        while order:
            longest = _length(pairs[order[0]])
            room = min(_TOKENS_AT_ONCE, _LOGITS_AT_ONCE // self._model.config.vocab_size)
            batch, order = order[: max(1, room // longest)], order[max(1, room // longest) :]
            for index, each in zip(batch, self._read([pairs[index] for index in batch]), strict=True):
                scores[index] = each
                done += _length(pairs[index])
                if finished is not None:
                    finished(index, each)
            if report is not None:
                report(done, total)
        return [scores[index] for index in range(len(pairs))]

    @torch.inference_mode()
    def _read(self, pairs: Sequence[Pair]) -> list[Scores]:
        longest = max(map(_length, pairs))
        ids = np.zeros((len(pairs), longest), np.int64)
        mask = np.zeros_like(ids)
        for row, pair in enumerate(pairs):
            inputs = (*pair.context, *pair.continuation[:-1])
            ids[row, : len(inputs)], mask[row, : len(inputs)] = inputs, 1
        device = self._model.device
        options: dict[str, Any] = {}
        if (mask == 0).any():
            options["attention_mask"] = torch.from_numpy(mask).to(device)
        try:
            logits = self._model(torch.from_numpy(ids).to(device), **options).logits
        except (MemoryError, RuntimeError) as error:
            if not _is_memory(error):
                raise
            raise DataError(
                f"{longest} tokens are more than memory has room for: {_first_line(error)}"
            ) from error
        found = []
        for row, pair in enumerate(pairs):
            first = len(pair.context) - 1
            targets = torch.tensor(pair.continuation, device=device)
            own = F.log_softmax(logits[row, first : first + len(targets)].double(), dim=-1)
            values = own.gather(1, targets[:, None])[:, 0]
            found.append(Scores(values.cpu().numpy(), (own.argmax(-1) == targets).cpu().numpy()))
        return found


def _length(pair: Pair) -> int:
    """Tokens that are read."""
    return len(pair.context) + len(pair.continuation) - 1


def _is_memory(error: BaseException) -> bool:
    words = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "memory" in words


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
