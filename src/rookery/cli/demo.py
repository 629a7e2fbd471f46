"""``rookery demo``: a small RWKV-7 learns Python from the standard library, then writes some."""

from __future__ import annotations

import shlex
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rookery.cli.terminal import write_text
from rookery.errors import require
from rookery.files import shown

if TYPE_CHECKING:
    from pathlib import Path

    from rookery.train import TrainConfig, TrainResult
    from rookery.train.documents import Document

__all__ = ["HELP", "add_arguments", "bits_per_byte", "demo_config", "run"]

HELP = """\
Train a small RWKV-7, byte by byte, on the source code of the standard library of the running Python. Then let
it write 300 bytes of Python, one at a time. Then compare it with xz and gzip on files it has not seen."""

_PROMPT = "def "
_BYTES = 300


def add_arguments(parser: ArgumentParser) -> None:
    """The options of the verb."""
    parser.add_argument(
        "--minutes", type=float, metavar="X", default=4.5, help="minutes of training (default 4.5)"
    )
    parser.add_argument(
        "--out", metavar="RUN", default="demo", help="the run folder, replaced if there (default demo)"
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", default=0, help="of the weights, data order and text"
    )


def demo_config(*, minutes: float, out: str, seed: int = 0) -> TrainConfig:
    """The run that the demo makes; ``rookery train`` with these options makes the same."""
    from rookery.train.config import TrainConfig
    from rookery.train.documents import standard_library

    folder, suffix, exclude = standard_library()
    return TrainConfig(
        data=(folder,),
        suffix=suffix,
        exclude=exclude,
        valid_fraction=0.04,
        valid_documents=True,
        tokenizer="bytes",
        version="7",
        layers=4,
        width=128,
        context=256,
        batch=4,
        learning_rate=2e-3,
        warmup_steps=50,
        weight_decay=0.1,
        minutes=minutes,
        # A third of the held-out files; on two cores this takes three seconds every half minute.
        valid_every=300,
        valid_tokens=1 << 16,
        save_every=0,
        out=out,
        overwrite=True,
        seed=seed,
    )


def run(args: Namespace) -> int:
    """Train, write, compare."""
    require("torch", extra="train", purpose="The demo")
    from rich.console import Console

    from rookery.cli.train import report
    from rookery.train import train
    from rookery.train.corpus import read_data
    from rookery.train.display import make_reporter

    config = demo_config(minutes=args.minutes, out=args.out, seed=args.seed)
    console = Console()
    console.rule("Training on the standard library of this Python", align="left")
    result = train(config, reporter=make_reporter(console))
    if result.interrupted is not None:
        return report(result)
    console.rule("Writing, byte by byte", align="left")
    _write(result.run, args.seed)
    console.rule("Against compressors", align="left")
    training, held_out = read_data(config)
    print(_comparison(result, training, held_out))
    return 0


def bits_per_byte(documents: Sequence[Document]) -> dict[str, float]:
    """What ``xz -9e`` and ``gzip -9`` make of documents joined into one file, in bits per byte of text."""
    import gzip
    import lzma

    text = b"".join(document.text.encode() for document in documents)
    compressed = {
        "xz -9e": lzma.compress(text, preset=9 | lzma.PRESET_EXTREME),
        "gzip -9": gzip.compress(text, 9),
    }
    return {name: 8 * len(data) / len(text) for name, data in compressed.items()}


def _write(path: Path, seed: int) -> None:
    import rookery

    model = rookery.load(path)
    assert model.tokenizer is not None
    # Without the end of text, which would end it early, there are exactly as many bytes as were asked for.
    end = model.tokenizer.end_of_text
    banned = () if end is None else (end,)
    began = time.perf_counter()
    write_text(_PROMPT)
    for piece in model.stream(
        _PROMPT, max_tokens=_BYTES, temperature=0.7, top_p=0.9, banned_tokens=banned, seed=seed
    ):
        write_text(piece)
    seconds = time.perf_counter() - began
    print(
        f"\n\n{_BYTES} bytes in {seconds:.2f} s. More: rookery generate {shlex.quote(shown(path))} 'import '"
    )
    sys.stdout.flush()


def _comparison(result: TrainResult, training: Sequence[Document], held_out: Sequence[Document]) -> str:
    size = sum(len(document.text.encode()) for document in held_out)
    others = bits_per_byte(held_out)
    figures = ", ".join(f"{name} {value:.3f}" for name, value in others.items())
    return (
        f"Saved: {shown(result.run / 'model.safetensors')}; the loss: {shown(result.run / 'loss.png')}\n"
        f"The model reads each held-out file by itself, from its first byte on, after "
        f"{result.seconds / 60:.1f} minutes with {len(training)} other files.\n"
        f"The compressors get the held-out files joined into one, which helps them, and have seen no others. "
        f"The size of the model is not counted.\n"
        f"Bits per byte on {len(held_out)} held-out files ({size:,} bytes): "
        f"RWKV-7 {result.bits_per_byte:.3f}, {figures}"
    )
