"""Runs the models of a folder in the PyPI package ``rwkv``: a program, since environment sets its mode.

python rwkv_oracle.py FOLDER        writes NAME.npz beside each NAME.pth: for each length, logits and state
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import torch


def main(folder: Path) -> None:
    warnings.simplefilter("ignore")
    from rwkv.model import RWKV

    tokens = np.load(folder / "tokens.npy")
    lengths = np.load(folder / "lengths.npy")
    for path in sorted(folder.glob("*.pth")):
        model = RWKV(model=str(path.with_suffix("")), strategy="cpu fp32")
        vocab_size = torch.load(path, mmap=True)["emb.weight"].shape[0]
        results = {}
        for length in lengths:
            ids = (tokens[:length] % vocab_size).tolist()
            logits, state = model.forward(ids, None, full_output=True)
            results[f"logits_{length}"] = logits.reshape(length, -1).numpy()
            for i, part in enumerate(state):
                results[f"state_{length}_{i}"] = part.numpy()
        np.savez(path.with_suffix(".npz"), **results)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
