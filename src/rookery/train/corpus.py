"""What a run learns from and is validated on: files to token streams, and the tokenizer between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rookery.checkpoints import Checkpoint
from rookery.errors import CheckpointError, ConfigError, DataError
from rookery.tokenizers import CharTokenizer, Tokenizer, from_spec, guess, named
from rookery.train.config import TrainConfig
from rookery.train.data import TokenStream, pack
from rookery.train.documents import Document, hold_out, read_documents

__all__ = ["Corpus", "choose_tokenizer", "read_corpus", "read_data"]


@dataclass(frozen=True)
class Corpus:
    """The data of a run, as tokens."""

    tokenizer: Tokenizer
    training: TokenStream
    validation: TokenStream


def read_corpus(config: TrainConfig, choose: Callable[[list[Document]], Tokenizer]) -> Corpus:
    """Read and tokenize the data of a run.

    Args:
        choose: gives the tokenizer, from all documents.

    Raises:
        DataError: data that cannot be used; the message names the file.
        TokenizerError: no such tokenizer, or text that it cannot encode.
    """
    training, validation = read_data(config)
    tokenizer = choose([*training, *validation])
    corpus = Corpus(tokenizer, pack(training, tokenizer), pack(validation, tokenizer))
    if len(corpus.validation.tokens) < 2:
        names = ", ".join(document.name for document in validation[:3])
        raise DataError(f"{names}: one token to validate on is too little; two are needed")
    return corpus


def read_data(config: TrainConfig) -> tuple[list[Document], list[Document]]:
    """The documents of a run to train on, and those to validate on.

    Raises:
        DataError: data that cannot be used; the message names the file.
    """

    def read(paths: Sequence[str]) -> list[Document]:
        return read_documents(
            paths, text_field=config.text_field, suffix=config.suffix, exclude=config.exclude
        )

    documents = read(config.data)
    if config.valid_data:
        return documents, read(config.valid_data)
    return hold_out(documents, config.valid_fraction)


def choose_tokenizer(
    config: TrainConfig, initial: Checkpoint | None, documents: Sequence[Document]
) -> Tokenizer:
    """The tokenizer that a configuration asks for, else that of the model it starts from, else bytes.

    Args:
        initial: the model that ``config.init`` names.
        documents: whose characters "chars" has.

    Raises:
        TokenizerError: there is no such tokenizer.
        CheckpointError: the model has no tokenizer with it, and none is named.
        ConfigError: the model has fewer ids than the tokenizer.
    """
    if config.tokenizer == "chars":
        tokenizer = CharTokenizer.from_corpus("".join(document.text for document in documents))
    elif config.tokenizer is not None:
        tokenizer = named(config.tokenizer)
    elif initial is None:
        return named("bytes")
    elif initial.tokenizer is not None:
        tokenizer = from_spec(initial.tokenizer)
    else:
        known = guess(initial.config.vocab_size)
        if known is None:
            raise CheckpointError(
                initial.path,
                f"has no tokenizer with it, and its vocabulary of {initial.config.vocab_size} is of no known "
                f"one; name it with --tokenizer",
            )
        tokenizer = known
    # A vocabulary may be padded to a round size, so that the model may know more ids than the tokenizer.
    if initial is not None and tokenizer.vocab_size > initial.config.vocab_size:
        raise ConfigError(
            f"the tokenizer has {tokenizer.vocab_size} ids, but the model {initial.path} only "
            f"{initial.config.vocab_size}"
        )
    return tokenizer
