"""Token-shifted inputs, and products of token-shifted inputs with matrices of low rank.

The shift is linear: with x the present input, p the previous one, m a weight and M a matrix,

    (x + (p - x) m) M  =  x ((1 - m) M)  +  p (m M)

so that one product of x with all matrices, folded with their weights, and a sum over two tokens of what is
much narrower than x takes the place of shifted inputs that nothing else reads. A GPU writes, reads and keeps
less; the product has twice the columns, of few. A CPU, which is bound by arithmetic, multiplies shifted
inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rookery.ops.fused.operators import (
    kernels_of,
    narrows,
    power_of_two,
    product_dtype,
    triton_serves,
    widest,
)
from rookery.ops.fused.token_shift import token_shift
from rookery.ops.tensors import contiguous
from rookery.ops.triton import block, marks_of

__all__ = ["multiply", "shifted_products"]

# Tokens of a row for which folding the matrices costs little beside the rest.
FEWEST_TOKENS = 128


def multiply(x: Tensor, matrix: Tensor | nn.Module) -> Tensor:
    """``x @ matrix`` for a parameter [inputs, outputs], or the module that a quantized model has there."""
    return matrix(x) if isinstance(matrix, nn.Module) else x @ matrix


def shifted_products(
    x: Tensor,
    last: Tensor | None,
    weights: Sequence[Tensor],
    products: Sequence[tuple[Tensor, Tensor | nn.Module]],
    *,
    starts: Tensor | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Token shifts of x by weights; and by other weights, each multiplied by a matrix.

    Args:
        x: [B, T, D].
        last: [B, D], the input before ``x[:, 0]``; None for zeros, at the start of a text.
        weights: each [1, 1, D].
        products: pairs of a weight [1, 1, D], which may be one of `weights`, and a matrix [D, rank], or the
            module that multiplies by it.
        starts: [B, T] bool; the first token of a document has zeros before it.

    Returns:
        One [B, T, D] for each weight, as ``token_shift`` gives it, and one [B, T, rank] for each product.
    """
    shifts = [weight for weight, _ in products]
    matrices = [matrix for _, matrix in products if isinstance(matrix, Tensor)]
    if len(matrices) < len(products) or not _folds(x, last, shifts, matrices):
        return _multiplied(x, last, weights, products, starts)
    ranks = [matrix.shape[1] for matrix in matrices]
    dtype = product_dtype(x.device.type) or widest(x, *shifts, *matrices)
    folded = _fold(matrices, shifts, dtype)
    before = None if last is None else last.to(dtype) @ folded[:, sum(ranks) :]
    sums = _add_previous(x.to(dtype) @ folded, before, starts)
    return token_shift(x, last, weights, starts=starts), list(sums.split(ranks, dim=-1))


def _multiplied(
    x: Tensor,
    last: Tensor | None,
    weights: Sequence[Tensor],
    products: Sequence[tuple[Tensor, Tensor | nn.Module]],
    starts: Tensor | None,
) -> tuple[list[Tensor], list[Tensor]]:
    """By shifted inputs, each made once."""
    places = {id(weight): i for i, weight in enumerate(weights)}
    others = [weight for weight, _ in products if id(weight) not in places]
    places |= {id(weight): len(weights) + i for i, weight in enumerate(others)}
    shifted = token_shift(x, last, [*weights, *others], starts=starts)
    return shifted[: len(weights)], [
        multiply(shifted[places[id(weight)]], matrix) for weight, matrix in products
    ]


def _folds(x: Tensor, last: Tensor | None, weights: Sequence[Tensor], matrices: Sequence[Tensor]) -> bool:
    given = [x, *weights, *matrices] if last is None else [x, last, *weights, *matrices]
    return narrows(x.device.type) and x.shape[1] >= FEWEST_TOKENS and triton_serves(*given)


def _fold_launch(matrices: Sequence[Tensor]) -> tuple[list[int], tuple[int, ...], dict[str, Any]]:
    """Ranks, grid and what the kernels of `_fold` are compiled for."""
    ranks = [matrix.shape[1] for matrix in matrices]
    D, wide = len(matrices[0]), block(max(ranks))
    tall = power_of_two(D, max(1, 4096 // wide))
    constants = {"COUNT": len(ranks), "BD": tall, "BR": wide, "num_warps": 8}
    return ranks, (-(-D // tall),), constants


@torch.library.custom_op("rookery::fold_shifts", mutates_args=(), device_types="cuda")
def _fold(matrices: Sequence[Tensor], weights: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    folded = _empty_folded(matrices, weights, dtype)
    ranks, grid, constants = _fold_launch(matrices)
    kernels_of("shifted_products").fold[grid](
        *(tuple(contiguous(each) for each in kind) for kind in (matrices, weights)),
        *(tuple(ranks), folded, len(folded), sum(ranks)),
        **constants,
    )
    return folded


@_fold.register_fake
def _empty_folded(matrices: Sequence[Tensor], weights: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    columns = 2 * sum(matrix.shape[1] for matrix in matrices)
    return matrices[0].new_empty(len(matrices[0]), columns, dtype=dtype)


@torch.library.custom_op("rookery::fold_shifts_backward", mutates_args=(), device_types="cuda")
def _fold_backward(matrices: Sequence[Tensor], weights: Sequence[Tensor], dfolded: Tensor) -> list[Tensor]:
    gradients = _empty_fold_gradients(matrices, weights, dfolded)
    ranks, grid, constants = _fold_launch(matrices)
    kernels_of("shifted_products").fold_backward[grid](
        *(tuple(contiguous(each) for each in kind) for kind in (matrices, weights)),
        *(tuple(ranks), contiguous(dfolded)),
        *(tuple(gradients[: len(ranks)]), tuple(gradients[len(ranks) :]), len(dfolded), sum(ranks)),
        **constants,
    )
    return gradients


@_fold_backward.register_fake
def _empty_fold_gradients(
    matrices: Sequence[Tensor], weights: Sequence[Tensor], dfolded: Tensor
) -> list[Tensor]:
    """Of each matrix, then of each weight."""
    return [x.new_empty(x.shape) for x in (*matrices, *weights)]


def _keep_fold(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    matrices, weights, _dtype = inputs
    ctx.count = len(matrices)
    ctx.save_for_backward(*matrices, *weights)


def _fold_gradients(ctx: Any, dfolded: Tensor) -> tuple[Any, ...]:
    saved = list(ctx.saved_tensors)
    gradients = _fold_backward(saved[: ctx.count], saved[ctx.count :], dfolded)
    return gradients[: ctx.count], gradients[ctx.count :], None


_fold.register_autograd(_fold_gradients, setup_context=_keep_fold)


def _sum_launch(B: int, T: int, R: int) -> tuple[tuple[int, ...], tuple[int, ...], dict[str, int]]:
    """Grid, sizes and what the kernels of `_add_previous` are compiled for."""
    wide = power_of_two(R, 128)
    tall = power_of_two(T, 4096 // wide)
    blocks = -(-T // tall)
    return (B * blocks * -(-R // wide),), (T, R, blocks), {"BT": tall, "BR": wide, "num_warps": 8}


@torch.library.custom_op("rookery::add_previous", mutates_args=(), device_types="cuda")
def _add_previous(products: Tensor, last: Tensor | None, starts: Tensor | None) -> Tensor:
    sums = _empty_sums(products, last, starts)
    grid, sizes, constants = _sum_launch(*sums.shape)
    kernels_of("shifted_products").add_previous[grid](
        contiguous(products),
        # Any place to point at, where nothing is read.
        sums if last is None else contiguous(last),
        marks_of(starts, sums),
        *(sums, *sizes),
        LAST=last is not None,
        STARTS=starts is not None,
        **constants,
    )
    return sums


@_add_previous.register_fake
def _empty_sums(products: Tensor, last: Tensor | None, starts: Tensor | None) -> Tensor:
    B, T, columns = products.shape
    return products.new_empty(B, T, columns // 2)


@torch.library.custom_op("rookery::add_previous_backward", mutates_args=(), device_types="cuda")
def _spread(dsums: Tensor, starts: Tensor | None, with_last: bool) -> tuple[Tensor, Tensor]:
    gradients = _empty_spread(dsums, starts, with_last)
    grid, sizes, constants = _sum_launch(*dsums.shape)
    kernels_of("shifted_products").spread[grid](
        *(contiguous(dsums), marks_of(starts, dsums), *gradients, *sizes),
        LAST=with_last,
        STARTS=starts is not None,
        **constants,
    )
    return gradients


@_spread.register_fake
def _empty_spread(dsums: Tensor, starts: Tensor | None, with_last: bool) -> tuple[Tensor, Tensor]:
    """Of the products, and of the last ones; nothing where there are none."""
    B, T, R = dsums.shape
    return dsums.new_empty(B, T, 2 * R), dsums.new_empty(B if with_last else 0, R)


def _keep_sums(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _products, last, starts = inputs
    ctx.with_last = last is not None
    ctx.save_for_backward(starts)


def _sum_gradients(ctx: Any, dsums: Tensor) -> tuple[Any, ...]:
    [starts] = ctx.saved_tensors
    dproducts, dlast = _spread(dsums, starts, ctx.with_last)
    return dproducts, dlast if ctx.with_last else None, None


_add_previous.register_autograd(_sum_gradients, setup_context=_keep_sums)
