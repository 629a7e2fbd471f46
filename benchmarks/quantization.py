"""What quantization costs: bits per byte of held-out text, and bytes of the file.

    python -m benchmarks.quantization runs/small runs/large

Each RUN is a folder of `rookery train`, whose held-out text is predicted by the native engine in float32, in
bfloat16, and from the q8 and q4 files that `rookery quantize` writes: every token but the first, in windows
of the run's context that begin with a new state, as training validates. The table is Markdown.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.report import Figure, add_report_arguments, write_figures
from rookery import checkpoints, native
from rookery.checkpoints import Checkpoint
from rookery.native.quantize import TYPES, quantize
from rookery.state import initial_state
from rookery.tokenizers import Tokenizer, from_spec
from rookery.train.corpus import read_corpus
from rookery.train.data import IGNORED, TokenStream, bytes_of_tokens
from rookery.train.run_folder import RunFolder

# Most percent that the bits per byte may rise.
BOUNDS = {"q8": 0.1, "q4": 2.0}

_BATCH = 16


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quantization",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="a folder of `rookery train`")
    add_report_arguments(parser)
    options = parser.parse_args()
    print("| model | weights | file, MB | bits per byte | against float32 | at most |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    figures = [figure for run in options.runs for figure in measure(run)]
    write_figures(options.json, figures)


def measure(run: Path) -> list[Figure]:
    """The figures of one run, and their rows of the table."""
    folder = RunFolder(run)
    config = folder.read_config()
    whole = checkpoints.load(folder.model)
    assert whole.tokenizer is not None
    tokenizer: Tokenizer = from_spec(whole.tokenizer)
    stream = read_corpus(config, lambda _: tokenizer).validation
    token_bytes = bytes_of_tokens(tokenizer)
    parameters = sum(tensor.size for tensor in whole.tensors.values())
    name = f"RWKV-{whole.config.version}, {parameters / 1e6:.1f} M parameters"
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as directory:
        files = {
            "float32": (whole, None),
            "bfloat16": (checkpoints.cast(whole, "bfloat16"), "bfloat16"),
            **{kind: (quantize(whole, kind), None) for kind in TYPES},
        }
        first = 0.0
        for kind, (checkpoint, dtype) in files.items():
            path = Path(directory) / f"{kind}.gguf"
            checkpoints.save(checkpoint, path)
            score = bits_per_byte(checkpoints.load(path), dtype, stream, token_bytes, config.context)
            first = first or score
            size, rise, bound = path.stat().st_size / 1e6, 100 * (score / first - 1), BOUNDS.get(kind)
            figures += [
                Figure(f"{name}: {kind}, file", size, "MB"),
                Figure(f"{name}: {kind}", score, "bits/byte"),
                Figure(f"{name}: {kind} against float32", rise, "%", bound, at_most=True),
            ]
            most = "" if bound is None else f"+{bound} %"
            against = "" if kind == "float32" else f"{rise:+.3f} %"
            print(f"| {name} | {kind} | {size:.2f} | {score:.4f} | {against} | {most} |", flush=True)
    return figures


def bits_per_byte(
    checkpoint: Checkpoint, dtype: str | None, stream: TokenStream, token_bytes: np.ndarray, context: int
) -> float:
    """Of every token of a stream but the first, in windows of the context."""
    model = native.load(checkpoint, dtype=dtype)
    positions = stream.windows(context)
    nats, count = 0.0, 0
    for first in range(0, len(positions), _BATCH):
        rows = stream.rows(positions[first : first + _BATCH], context)
        assert rows.starts is None, "a run on one text"
        logits, _ = model.forward(rows.inputs, initial_state(model.config, len(rows.inputs)))
        predicted = rows.targets != IGNORED
        scores = logits[predicted].astype(np.float64)
        targets = rows.targets[predicted]
        largest = scores.max(axis=1)
        sums = largest + np.log(np.exp(scores - largest[:, None]).sum(axis=1))
        nats += float((sums - scores[np.arange(len(targets)), targets]).sum())
        count += int(token_bytes[targets].sum())
    return nats / math.log(2) / count


if __name__ == "__main__":
    main()
