"""``rookery convert``: the same model in another format or dtype."""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ["HELP", "add_arguments", "run"]

HELP = """\
Write a model in another format: .safetensors, .pth or .gguf by the suffix of OUT, or a Hugging Face folder.
Without --dtype every weight stays as it is, bit for bit; but what is quantized becomes float32, except in
.gguf (which `rookery quantize` makes)."""

# rookery.checkpoints.DTYPES, written out so that help needs no numpy; a test holds them together.
_DTYPES = ("float32", "bfloat16", "float16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    parser.add_argument(
        "input", metavar="IN", help="a .pth, .safetensors, .gguf or rwkv.cpp .bin file, or a folder"
    )
    parser.add_argument(
        "output", metavar="OUT", help="a .safetensors, .pth or .gguf file; with --huggingface a folder"
    )
    parser.add_argument("--dtype", choices=_DTYPES, help="round every weight to this dtype")
    parser.add_argument(
        "--huggingface", action="store_true", help="write a folder for transformers (RWKV-4) or fla (RWKV-7)"
    )


def run(args: argparse.Namespace) -> int:
    """Convert one checkpoint."""
    from rookery.checkpoints import cast, load, save, save_huggingface

    checkpoint = load(args.input)
    if args.dtype is not None:
        checkpoint = cast(checkpoint, args.dtype)
    if args.huggingface:
        save_huggingface(checkpoint, args.output)
    else:
        save(checkpoint, args.output)
    output = Path(args.output)
    parameters = sum(tensor.size for tensor in checkpoint.tensors.values())
    print(f"{output}: RWKV-{checkpoint.config.version}, {parameters:,} parameters")
    return 0
