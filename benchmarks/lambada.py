"""LAMBADA's items: rookery's likelihoods against lm-eval's ``hf`` model, with the same weights.

    python -m benchmarks.lambada --data lambada_test.jsonl [--items 100] [--json FILE]

Both sides have one RWKV-4 of the shape of the 0.1B model (12 layers, 768 wide, vocabulary 50277) with random
weights, in float32 and then in bfloat16, one tokenizer, made here of the file's own text, the same requests,
and the same number of threads. The peer is transformers' ``RwkvForCausalLM`` behind lm-eval's ``hf``, with
the batch that is fastest for it. They run in turn in one process; the ratio is the median of those of single
rounds. What they find in float32 must agree.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model

from benchmarks.report import (
    Figure,
    add_report_arguments,
    interleaved,
    print_figures,
    quotient,
    write_figures,
)
from rookery import checkpoints
from rookery.config import ModelConfig, sized
from rookery.evaluate.json_lines import read_lines
from rookery.evaluate.lm_eval_model import RookeryLM
from rookery.generate import load

__all__ = ["main", "measure"]

VOCABULARY = 50277
DTYPES = ("float32", "bfloat16")
PEERS = ("lm_eval", "transformers")


def make_tokenizer(texts: Sequence[str]) -> str:
    """A byte-level BPE of the texts' own pieces, as the JSON of the `tokenizers` library."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.to_str()


def make_weights(config: ModelConfig) -> dict[str, np.ndarray]:
    """Random weights that keep activations in their range."""
    rng = np.random.default_rng(0)

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name.endswith("time_decay"):
            values = rng.uniform(-5, 0.5, shape)
        elif "time_mix" in name:
            values = rng.uniform(0, 1, shape)
        elif name.endswith((".bias", "time_first")):
            values = rng.normal(0, 0.1, shape)
        elif "ln" in name:
            values = rng.normal(1, 0.1, shape)
        else:
            values = rng.normal(0, shape[-1] ** -0.5, shape)
        return values.astype(np.float32)

    return {name: draw(name, shape) for name, shape in checkpoints.expected_shapes(config).items()}


def make_requests(texts: Sequence[str]) -> list[Instance]:
    """As lm-eval's ``lambada_openai`` has them: the last word after all before it."""
    pairs = [text.rsplit(" ", 1) for text in texts]
    return [
        Instance("loglikelihood", {}, (before, f" {last}"), 0, ("lambada_openai", index, 1))
        for index, (before, last) in enumerate(pairs)
    ]


def measure(
    texts: Sequence[str],
    *,
    items: int,
    rounds: int,
    threads: int,
    layers: int = 12,
    width: int = 768,
    batches: Sequence[int] = (1, 4, 16),
) -> list[Figure]:
    """The figures: seconds of both sides, their ratio, and how far apart what they find is."""
    config = sized("4", vocab_size=VOCABULARY, width=width, num_layers=layers)
    torch.set_num_threads(threads)
    requests = make_requests(texts[:items])
    name = f"LAMBADA, {len(requests)} items"
    found: dict[str, Any] = {}
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        spec = {"kind": "json", "json": make_tokenizer(texts)}
        checkpoint = checkpoints.Checkpoint(config=config, tensors=make_weights(config), tokenizer=spec)
        checkpoints.save_huggingface(checkpoint, Path(folder))
        for dtype in DTYPES:
            ours = RookeryLM(load(folder, backend="native", dtype=dtype, threads=threads))
            batch, peer = _fastest(Path(folder), dtype, batches, requests)
            sides = {
                "rookery": _seconds(ours, requests, found, f"rookery {dtype}"),
                "hf": _seconds(peer, requests, found, f"hf {dtype}"),
            }
            measured = interleaved(sides, rounds=rounds)
            ratio = quotient(measured["hf"], measured["rookery"])
            ours_took, theirs_took = (statistics.median(measured[side]) for side in sides)
            figures += [
                Figure(f"{name}, {dtype}, hf / rookery", ratio, "x", 3.0),
                Figure(f"{name}, {dtype}, rookery", ours_took, "s"),
                Figure(f"{name}, {dtype}, lm-eval's hf, batch {batch}", theirs_took, "s"),
            ]
        tokens = sum(len(ours.pair(*request.args).context) for request in requests)
    exact = [nats for nats, _ in found["hf float32"]]
    for side, bound in (("rookery float32", 1e-3), ("rookery bfloat16", None), ("hf bfloat16", None)):
        apart = max(abs(nats - wanted) for (nats, _), wanted in zip(found[side], exact, strict=True))
        what = f"{name}, log-likelihoods of {side} and hf float32 apart"
        figures.append(Figure(what, apart, "nats", bound, at_most=True))
    return [
        *figures,
        Figure(f"{name}, tokens of contexts", tokens, "tok"),
        Figure("Threads of both", threads, ""),
    ]


def _fastest(folder: Path, dtype: str, batches: Sequence[int], requests: list[Instance]) -> tuple[int, Any]:
    """lm-eval's hf model in a number type, with the batch that is fastest for it."""
    model = transformers.RwkvForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), rescale_every=0)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), eos_token="<|endoftext|>"
    )
    peers = {
        batch: get_model("hf")(pretrained=model, tokenizer=tokenizer, batch_size=batch, max_length=1024)
        for batch in batches
    }
    few = requests[: max(batches)]
    tried = {batch: _seconds(peer, few)() for batch, peer in peers.items()}
    batch = min(tried, key=tried.__getitem__)
    return batch, peers[batch]


def _seconds(
    lm: Any, requests: list[Instance], found: dict[str, Any] | None = None, name: str = ""
) -> Callable[[], float]:
    """What times one evaluation; each is computed anew."""

    def seconds() -> float:
        # Ours with an empty cache.
        side = RookeryLM(lm.model) if isinstance(lm, RookeryLM) else lm
        start = time.perf_counter()
        result = side.loglikelihood(requests, disable_tqdm=True)
        spent = time.perf_counter() - start
        if found is not None:
            found[name] = result
        return spent

    return seconds


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.lambada",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data", type=Path, required=True, metavar="FILE", help="LAMBADA's items as JSON lines with a text"
    )
    parser.add_argument("--items", type=int, default=100, help="the first so many (default: 100)")
    parser.add_argument("--rounds", type=int, default=3, help="of both sides in turn (default: 3)")
    parser.add_argument("--threads", type=int, default=2, help="of both sides (default: 2)")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    add_report_arguments(parser)
    options = parser.parse_args()
    texts = [line.require("text", str) for line in read_lines(options.data)]
    figures = measure(
        texts,
        items=options.items,
        rounds=options.rounds,
        threads=options.threads,
        layers=options.layers,
        width=options.width,
    )
    print_figures("Evaluating LAMBADA, against lm-eval's hf model", figures)
    write_figures(options.json, figures, PEERS)


if __name__ == "__main__":
    main()
