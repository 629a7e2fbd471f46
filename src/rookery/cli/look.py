"""``rookery look``: inside a model while it reads a text."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from rookery.cli.model_options import add_model_arguments, load_model
from rookery.errors import DataError, require
from rookery.files import shown

__all__ = ["HELP", "add_arguments", "run"]

HELP = """\
Look inside a model while it reads a text, and write what is seen as one HTML page: the text coloured by
surprise, the decay spectrum of each layer, the state's norm and effective rank along the text, RWKV-7's
in-context learning rates, and how far back a change of one token is felt."""


def add_arguments(parser: ArgumentParser) -> None:
    """The options of the verb."""
    parser.usage = "%(prog)s MODEL (--text TEXT | --file FILE) [options]"
    add_model_arguments(parser)
    text = parser.add_argument_group("text").add_mutually_exclusive_group(required=True)
    text.add_argument("--text", metavar="TEXT", help="what to read")
    text.add_argument("--file", metavar="FILE", help="read this file, in UTF-8")
    parser.add_argument("--ids", action="store_true", help="the text is token ids, divided by spaces")
    output = parser.add_argument_group("output")
    output.add_argument("--out", metavar="PAGE.html", default="look.html", help="default: look.html")
    output.add_argument("--json", metavar="FILE", help="also write the numbers here")
    detail = parser.add_argument_group("detail")
    detail.add_argument("--changes", metavar="N", type=int, default=16, help="tokens to replace (default 16)")
    detail.add_argument(
        "--looks",
        metavar="N",
        type=int,
        default=160,
        help="places at which states are looked at (default 160)",
    )
    detail.add_argument("--seed", metavar="N", type=int, default=0, help="of replacements (default 0)")


def run(args: Namespace) -> int:
    """Read, measure, write the page."""
    for module in ("torch", "matplotlib"):
        require(module, extra="train", purpose="Looking inside a model")
    from rookery.evaluate.look import look_inside, start_token, text_tokens, to_json, write_page
    from rookery.evaluate.progress import progress

    text = args.text if args.file is None else _read(Path(args.file))
    model = load_model(args, backend="torch")
    tokens = text_tokens(model.tokenizer, text, ids=args.ids)
    with progress("reading") as advance:
        inside = look_inside(
            model,
            tokens,
            start=start_token(model),
            looks=args.looks,
            changes=args.changes,
            seed=args.seed,
            advance=advance,
        )
    name = Path(args.model).name
    write_page(inside, model.tokenizer, args.out, name=name)
    if args.json is not None:
        to_json(inside, args.json, name=name)
    bits = inside.bits_per_token
    print(f"{shown(Path(args.out))}: {len(tokens):,} tokens, {bits:.3f} bits per token")
    return 0


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None
