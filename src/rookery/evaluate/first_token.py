"""What stands before the first token of a text.

A model predicts a token from those before it, so that something must stand before the first one: the token
that divides documents, where the tokenizer has it, else a newline. Results depend on it, and name it.
"""

from __future__ import annotations

from dataclasses import dataclass

from rookery.errors import ConfigError, TokenizerError
from rookery.generate import LanguageModel
from rookery.tokenizers import Tokenizer

__all__ = ["FirstToken", "choose_first_token", "tokenizer_of"]


@dataclass(frozen=True)
class FirstToken:
    """The token that is read before a text."""

    id: int
    name: str
    """``"end-of-text"``, ``"newline"``, or ``"token 5"``."""


def choose_first_token(model: LanguageModel, asked: str | int | None = None) -> FirstToken:
    """The token to be read before a text.

    Args:
        model: with a tokenizer.
        asked: ``"end-of-text"``, ``"newline"``, or an id; by default the end of text where the tokenizer has
            one, else a newline.

    Raises:
        TokenizerError: there is no tokenizer, or it has no such token.
        ConfigError: the id is outside of the vocabulary, or it is neither a name nor a number.
    """
    tokenizer = tokenizer_of(model)
    if asked is None:
        asked = "newline" if tokenizer.end_of_text is None else "end-of-text"
    if asked == "end-of-text":
        if tokenizer.end_of_text is None:
            raise TokenizerError(f"{tokenizer} has no end of text; the first token may be newline, or an id")
        return FirstToken(tokenizer.end_of_text, "end-of-text")
    if asked == "newline":
        ids = tokenizer.encode("\n")
        if len(ids) != 1:
            raise TokenizerError(
                f"a newline is {len(ids)} tokens of {tokenizer}; name the first one by its id"
            )
        return FirstToken(ids[0], "newline")
    try:
        number = int(asked)
    except ValueError:
        raise ConfigError(f"the first token is end-of-text, newline or an id, not {asked!r}") from None
    if not 0 <= number < model.config.vocab_size:
        raise ConfigError(
            f"the first token {number} is outside of the vocabulary of {model.config.vocab_size}"
        )
    return FirstToken(number, f"token {number}")


def tokenizer_of(model: LanguageModel) -> Tokenizer:
    """The tokenizer of a model.

    Raises:
        TokenizerError: it has none, and text cannot be scored.
    """
    if model.tokenizer is None:
        raise TokenizerError(
            f"no tokenizer is known for this model of {model.config.vocab_size} tokens, and text "
            "cannot be scored without: give one (--tokenizer): world, bytes, or a tokenizer.json"
        )
    return model.tokenizer
