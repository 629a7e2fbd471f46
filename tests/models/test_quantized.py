"""A model in blocks computes what its dequantized twin does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rookery import checkpoints
from rookery.checkpoints import Quantized
from rookery.config import VERSIONS, sized
from rookery.errors import CheckpointError
from rookery.models import from_checkpoint, to_tensors
from rookery.models.quantized import QuantizedEmbedding, QuantizedLinear, quantized_from_checkpoint
from rookery.native.quantize import quantize

torch.set_num_threads(1)


def checkpoint_in_blocks(random_model, version, kind):
    # Low-rank matrices have blocks along their ranks, and so need ranks of 32.
    ranks = {"decay_rank": 32, "iclr_rank": 32, "value_rank": 32, "gate_rank": 32} if version == "7" else {}
    config = sized(version, vocab_size=65, width=64, num_layers=2, head_size=None, **ranks)
    tensors = {name: array.copy() for name, array in to_tensors(random_model(config)).items()}
    return quantize(checkpoints.Checkpoint(config=config, tensors=tensors), kind, threads=1)


@pytest.mark.parametrize("kind", ["q8", "q4"])
@pytest.mark.parametrize("version", VERSIONS)
def test_a_model_in_blocks_is_its_dequantized_twin(random_model, version, kind):
    checkpoint = checkpoint_in_blocks(random_model, version, kind)
    model = quantized_from_checkpoint(checkpoint, dtype=torch.float32)
    twin = from_checkpoint(checkpoint, dtype=torch.float32)
    in_blocks = [each for each in model.modules() if isinstance(each, QuantizedLinear | QuantizedEmbedding)]
    wanted = [name for name, weight in checkpoint.tensors.items() if isinstance(weight, Quantized)]
    assert len(in_blocks) == len(wanted)
    assert {name for name, _ in model.named_parameters()} == set(checkpoint.tensors) - set(wanted)
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, 65, (2, 5)))
    with torch.inference_mode():
        got, state = model(tokens)
        expected, twins = twin(tokens)
        again, _ = model(tokens[:, :1], state)
        other, _ = twin(tokens[:, :1], twins)
    largest = expected.abs().max().item()
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * largest)
    torch.testing.assert_close(again, other, rtol=0, atol=1e-5 * largest)


def test_blocks_that_nothing_multiplies_are_made_whole(random_model):
    checkpoint = checkpoint_in_blocks(random_model, "7", "q8")
    name = "blocks.1.att.w1"
    turned = checkpoint.tensors[name]
    assert isinstance(turned, Quantized)
    assert turned.transposed
    along_outputs = Quantized("q8_0", turned.shape, turned.blocks.reshape(turned.shape[0], -1))
    tensors = {**checkpoint.tensors, name: along_outputs}
    odd = checkpoints.Checkpoint(config=checkpoint.config, tensors=tensors)
    model = quantized_from_checkpoint(odd, dtype=torch.float32)
    assert name in dict(model.named_parameters())


def test_a_matrix_of_another_shape_is_refused(random_model):
    checkpoint = checkpoint_in_blocks(random_model, "4", "q8")
    tensors = {**checkpoint.tensors, "head.weight": checkpoint.tensors["blocks.0.att.key.weight"]}
    odd = checkpoints.Checkpoint(config=checkpoint.config, tensors=tensors)
    with pytest.raises(CheckpointError, match=r"head\.weight.*has shape \(64, 64\), expected \(65, 64\)"):
        quantized_from_checkpoint(odd, dtype=torch.float32)
