"""Options that ``generate`` and ``chat`` share: which model, on what, and how to choose tokens."""

from __future__ import annotations

from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rookery.generate import LanguageModel, SamplingParams, Session

__all__ = [
    "SAMPLING_OPTIONS",
    "add_model_arguments",
    "add_sampling_arguments",
    "begin_session",
    "given_sampling",
    "load_model",
    "speed_line",
    "unescape",
]


def unescape(text: str) -> str:
    r"""A text from the command line, where ``\n``, ``\t`` and ``\\`` are written for what cannot be typed.

    Raises:
        ArgumentTypeError: the text is empty.
    """
    if not text:
        raise ArgumentTypeError("a stop string must not be empty")
    pieces = text.split("\\\\")
    return "\\".join(piece.replace("\\n", "\n").replace("\\t", "\t") for piece in pieces)


def _tokens(text: str) -> int | None:
    """A number of tokens; 0 is no limit."""
    return int(text) or None


SAMPLING_OPTIONS: dict[str, tuple[Callable[[str], Any], str, str]] = {
    "max_tokens": (_tokens, "N", "end after so many tokens; 0: no limit"),
    "temperature": (float, "T", "divides the logits; 0 takes the likeliest token always"),
    "top_k": (int, "K", "keep the K likeliest tokens; 0 keeps all"),
    "top_p": (float, "P", "keep the likeliest tokens that have the probability P together; 1 keeps all"),
    "min_p": (float, "P", "keep tokens at least P times as probable as the likeliest; 0 keeps all"),
    "presence_penalty": (float, "X", "taken from the logit of every token that occurred"),
    "frequency_penalty": (float, "X", "taken from it once more for each time it occurred"),
    "penalty_decay": (float, "X", "what a count is multiplied by at each token; 1 never forgets"),
    "repetition_penalty": (float, "X", "divides positive logits of tokens that occurred; 1 changes nothing"),
    "seed": (int, "N", "the same seed gives the same text"),
}
"""Field of SamplingParams -> type, placeholder, help."""


def add_model_arguments(parser: ArgumentParser, *, several: bool = False) -> None:
    """Which model, or which ones, and what it runs on."""
    where = "a model file, a run folder or a Hugging Face folder"
    if several:
        parser.add_argument("model", metavar="MODEL", nargs="+", help=where)
    else:
        parser.add_argument("model", metavar="MODEL", help=where)
    group = parser.add_argument_group("model")
    group.add_argument(
        "--tokenizer", metavar="NAME", help="world, bytes, or a tokenizer.json; default: the model's own"
    )
    group.add_argument("--device", metavar="DEVICE", help="cpu, cuda, cuda:1; default: cuda if it is there")
    group.add_argument(
        "--dtype",
        metavar="TYPE",
        help="float32, bfloat16 (fp32, bf16), q8, q4, on a GPU float16 (fp16); default: the file's",
    )
    group.add_argument("--threads", metavar="N", type=int, help="CPU threads; default: all cores")


def add_sampling_arguments(parser: ArgumentParser, defaults: SamplingParams) -> None:
    """How to choose tokens, and when to stop. What is not given does not appear among the arguments."""
    # Without defaults: what a state file holds is overridden by what is given, and by that alone.
    group = parser.add_argument_group("sampling", argument_default=SUPPRESS)
    for field, (kind, placeholder, text) in SAMPLING_OPTIONS.items():
        default = getattr(defaults, field)
        group.add_argument(
            f"--{field.replace('_', '-')}",
            metavar=placeholder,
            type=kind,
            help=f"{text} (default: {'random' if default is None else default})",
        )
    group.add_argument(
        "--temperature-last",
        action="store_true",
        help="truncate before the temperature is applied, as the `rwkv` package does",
    )
    group.add_argument(
        "--ban-token",
        metavar="ID",
        type=int,
        action="append",
        dest="banned_tokens",
        help="a token id that is never chosen; may be given again",
    )
    group.add_argument(
        "--stop",
        metavar="TEXT",
        type=unescape,
        action="append",
        help=r"end before this text, which may have \n and \t in it; may be given again",
    )


def given_sampling(args: Namespace) -> dict[str, Any]:
    """The fields of ``SamplingParams`` that the command line gives."""
    fields = (*SAMPLING_OPTIONS, "temperature_last", "banned_tokens", "stop")
    return {field: getattr(args, field) for field in fields if hasattr(args, field)}


def begin_session(model: LanguageModel, args: Namespace, defaults: SamplingParams) -> Session:
    """A session with the options of the command line, from the state file ``args.state`` if there is one."""
    session = model.session(defaults)
    if args.state is not None:
        session.load(args.state)
    given = given_sampling(args)
    session.sampling = replace(session.sampling, **given)
    if "seed" in given:
        session.reseed(given["seed"])
    return session


def load_model(args: Namespace, *, backend: str | None = None) -> LanguageModel:
    """The model that the arguments name, in a backend that is asked for, or the one that suits."""
    from rookery.generate import load

    return load(
        args.model,
        backend=backend,
        device=args.device,
        dtype=args.dtype,
        tokenizer=args.tokenizer,
        threads=args.threads,
    )


def speed_line(session: Session, *, read: int, reading_s: float, writing_s: float) -> str:
    """How fast it went, in one line.

    Args:
        session: what wrote last.
        read: tokens of the prompt.
        reading_s: seconds until they were read.
        writing_s: seconds of writing.
    """
    parts = []
    if read:
        parts.append(f"read {read} tokens in {reading_s:.2f} s ({read / max(reading_s, 1e-9):.0f}/s)")
    written = session.generated
    if written:
        rate = written / max(writing_s, 1e-9)
        parts.append(f"wrote {written} tokens in {writing_s:.2f} s ({rate:.1f}/s)")
    parts.append(f"ended by {session.finish_reason or 'interruption'}")
    return "  ·  ".join(parts)
