"""Products with matrices in blocks: the formula against numpy, the kernels against the formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rookery.checkpoints import Quantized
from rookery.ops.quantized import dequantize, quantized_linear, split_blocks
from rookery.ops.quantized.triton import quantized_linear_triton
from rookery.ops.triton import DEVICES

pytestmark = pytest.mark.usefixtures("watched_kernels")

torch.set_num_threads(1)

DEVICE = DEVICES[0]
KINDS = {"q8_0": 34, "q4_0": 18}


def random_matrix(kind: str, rows: int, columns: int) -> Quantized:
    """Any bytes, under scales of either sign near 1/16."""
    rng = np.random.default_rng(rows * columns)
    blocks = rng.integers(0, 256, (rows, columns // 32, KINDS[kind]), dtype=np.uint8)
    scales = rng.normal(0, 1 / 16, (rows, columns // 32, 1)).astype(np.float16)
    blocks[:, :, :2] = scales.view(np.uint8)
    return Quantized(kind, (rows, columns), blocks.reshape(rows, -1))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_blocks_are_dequantized_exactly(kind):
    matrix = random_matrix(kind, 5, 96)
    numbers, scales = split_blocks(matrix)
    assert numbers.nbytes + scales.nbytes == matrix.nbytes
    assert torch.equal(dequantize(numbers, scales), torch.from_numpy(matrix.dequantize()))
    rows = torch.tensor([[4, 0], [1, 1]])
    some = dequantize(numbers[rows], scales[rows], torch.bfloat16)
    assert torch.equal(some, torch.from_numpy(matrix.dequantize())[rows].bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_the_product_is_that_of_the_dequantized_matrix(kind, dtype):
    matrix = random_matrix(kind, 7, 64)
    x = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    y = quantized_linear(x, *split_blocks(matrix))
    assert y.dtype == dtype
    wanted = x.float() @ torch.from_numpy(matrix.dequantize()).T
    torch.testing.assert_close(
        y.float(), wanted, rtol=0, atol=(1e-5 if dtype == torch.float32 else 2e-2) * 16
    )


@pytest.mark.parametrize("tokens", [1, 3, 17, 70])
@pytest.mark.parametrize("kind", KINDS)
def test_the_kernels_compute_the_product(kind, tokens):
    # Neither rows nor blocks fill the last program.
    matrix = random_matrix(kind, 37, 160)
    numbers, scales = (part.to(DEVICE) for part in split_blocks(matrix))
    x = torch.randn(tokens, 160, generator=torch.Generator().manual_seed(tokens)).to(DEVICE)
    wanted = x.double() @ dequantize(numbers, scales).double().T
    got = quantized_linear_triton(x, numbers, scales)
    torch.testing.assert_close(got.double(), wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())
    half = quantized_linear_triton(x.bfloat16(), numbers, scales)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), wanted, rtol=0, atol=2e-2 * wanted.abs().max().item())


def test_the_operator_is_declared_as_it_is():
    numbers, scales = (part.to(DEVICE) for part in split_blocks(random_matrix("q4_0", 16, 32)))
    x = torch.randn(2, 2, 32, device=DEVICE)
    torch.library.opcheck(quantized_linear_triton, (x, numbers, scales))
