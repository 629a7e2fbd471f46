"""The likeliest continuations of many prompts, written at the same time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from rookery.errors import ConfigError
from rookery.evaluate.first_token import tokenizer_of
from rookery.evaluate.pool import Pool, open_pool
from rookery.generate import LanguageModel
from rookery.generate.stops import StopScanner
from rookery.tokenizers import StreamDecoder

__all__ = ["write"]

# Streams that are decoded in one call: the weights are read once for all of them.
_STREAMS = 16
# Tokens of a prompt that are read in one call.
_PROMPT_TOKENS = 512


@dataclass
class _Stream:
    index: int
    unread: np.ndarray
    decoder: StreamDecoder
    stops: StopScanner
    text: str = ""
    written: int = 0
    done: bool = field(default=False)


def write(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    stop: Sequence[str] = (),
    finished: Callable[[int, str], None] | None = None,
) -> list[str]:
    """The text that the model writes after each prompt when it always takes the likeliest token.

    A text ends before the first stop string, at the end of text, or after so many tokens.

    Args:
        model: with a tokenizer.
        prompts: token ids, at least one of each.
        max_tokens: of each text.
        stop: strings, none of them empty.
        finished: is given a prompt's number and text as soon as it is done.

    Raises:
        ConfigError: a prompt has no tokens, or max_tokens is not positive, or a stop string is empty.
        TokenizerError: there is no tokenizer.
    """
    tokenizer = tokenizer_of(model)
    if max_tokens < 1 or not all(stop):
        raise ConfigError("texts need at least one token, and stop strings at least one character")
    for index, prompt in enumerate(prompts):
        if not len(prompt):
            raise ConfigError(f"prompt {index} has no tokens")
    texts = [""] * len(prompts)
    pool = open_pool(model, _STREAMS)
    waiting = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    streams: dict[int, _Stream] = {}
    while waiting or streams:
        for slot in range(pool.slots):
            if slot not in streams and waiting:
                index = waiting.pop()
                pool.put(slot, None)
                ids = np.array(prompts[index], np.int64)
                streams[slot] = _Stream(index, ids, StreamDecoder(tokenizer), StopScanner(stop))
        for slot, stream in list(_step(pool, streams, tokenizer.end_of_text, max_tokens).items()):
            texts[stream.index] = stream.text
            del streams[slot]
            if finished is not None:
                finished(stream.index, stream.text)
    return texts


def _step(
    pool: Pool, streams: dict[int, _Stream], end_of_text: int | None, max_tokens: int
) -> dict[int, _Stream]:
    """Read a piece of a prompt or a token in each stream, and choose the next token; those that ended."""
    requests = [(slot, stream.unread[:_PROMPT_TOKENS]) for slot, stream in streams.items()]
    logits = pool.advance(requests)
    for (slot, tokens), row in zip(requests, logits, strict=True):
        stream = streams[slot]
        stream.unread = stream.unread[len(tokens) :]
        if len(stream.unread):
            continue
        token = int(row.argmax())
        stream.written += 1
        if token == end_of_text:
            stream.text += stream.stops.push(stream.decoder.flush()) + stream.stops.flush()
            stream.done = True
            continue
        stream.text += stream.stops.push(stream.decoder.push(token))
        stream.done = stream.stops.stopped
        if not stream.done and stream.written == max_tokens:
            stream.text += stream.stops.push(stream.decoder.flush()) + stream.stops.flush()
            stream.done = True
        stream.unread = np.array([token], np.int64)
    return {slot: stream for slot, stream in streams.items() if stream.done}
