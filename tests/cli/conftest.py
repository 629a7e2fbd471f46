"""A tiny model for the command line."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def byte_model(tmp_path_factory) -> Path:
    """The file of a random RWKV-7 over bytes."""
    import torch

    from rookery import checkpoints
    from rookery.config import sized
    from rookery.models import RWKV, init_weights, to_tensors

    torch.set_num_threads(1)
    config = sized("7", vocab_size=256, width=32, num_layers=2)
    model = RWKV(config)
    init_weights(model, seed=1)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    tensors = to_tensors(model)
    checkpoints.save(
        checkpoints.Checkpoint(config=config, tensors=tensors, tokenizer={"kind": "bytes"}), path
    )
    return path
