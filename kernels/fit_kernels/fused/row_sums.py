"""Gradients of modulation rows: sums over the tokens of each row, in a fixed order.

Tokens are brought in the order of their rows first, so that a program walks one row's tokens and no
two programs add to the same place: no atomics, the same bits every time.

Dimension key: T packed tokens, R modulation rows, D width, P parts a row's tokens are dealt into.
"""

# pyright: reportArgumentType=false, reportOperatorIssue=false, reportPossiblyUnboundVariable=false
# Kernels are written in Triton's language; a type checker takes them for Python.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fit_kernels.launch import interpreting, launch, unit_stride

_BLOCK_D = 128
# Programs wanted in flight: four for each multiprocessor of a large GPU.
_PROGRAMS = 512


@triton.jit(do_not_specialize=["num_rows"])
def _sum_rows(
    grad_ptr,  # [T, D]
    other_ptr,  # [T, D]
    mean_ptr,  # fp32 [T] or None
    rstd_ptr,  # fp32 [T] or None
    order_ptr,  # int64 [T] tokens, those of one row side by side
    first_ptr,  # int64 [R + 1] where each row's tokens begin in that order
    sum_ptr,  # fp32 [P, R, D] out
    product_ptr,  # fp32 [P, R, D] out
    num_rows,
    grad_stride,
    other_stride,
    D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row, part = tl.program_id(0), tl.program_id(1)
    cols = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    in_row = cols < D
    first, end = tl.load(first_ptr + row), tl.load(first_ptr + row + 1)
    share = (end - first + tl.num_programs(1) - 1) // tl.num_programs(1)
    at = first + part * share
    end = tl.minimum(end, at + share)
    total = tl.zeros((BLOCK_T, BLOCK_D), tl.float32)
    product = tl.zeros((BLOCK_T, BLOCK_D), tl.float32)
    while at < end:
        place_N = at + tl.arange(0, BLOCK_T)
        keep_N = place_N < end
        token_N = tl.load(order_ptr + place_N, mask=keep_N, other=0)
        keep = keep_N[:, None] & in_row[None, :]
        grad = tl.load(
            grad_ptr + token_N[:, None] * grad_stride + cols[None, :], mask=keep, other=0.0
        ).to(tl.float32)
        total += grad
        other = tl.load(
            other_ptr + token_N[:, None] * other_stride + cols[None, :], mask=keep, other=0.0
        ).to(tl.float32)
        if mean_ptr is not None:
            mean_N = tl.load(mean_ptr + token_N, mask=keep_N, other=0.0)
            rstd_N = tl.load(rstd_ptr + token_N, mask=keep_N, other=0.0)
            other = (other - mean_N[:, None]) * rstd_N[:, None]
        product += grad * other
        at += BLOCK_T
    out = (part * num_rows + row).to(tl.int64) * D + cols
    tl.store(sum_ptr + out, tl.sum(total, 0), mask=in_row)
    tl.store(product_ptr + out, tl.sum(product, 0), mask=in_row)


def row_sums(
    grad_TD: Tensor,
    other_TD: Tensor,
    mean_T: Tensor | None,
    rstd_T: Tensor | None,
    row_T: Tensor,
    num_rows: int,
) -> tuple[Tensor, Tensor]:
    """Sum tokens by row.

    Args:
        grad_TD: what is summed.
        other_TD: what it is multiplied by in the second sum.
        mean_T, rstd_T: if given, `other` is normalised by them first.
        row_T: int64 row of each token, in any order.
        num_rows: R.

    Returns:
        `sum of grad` and `sum of grad * other` over each row's tokens, fp32 [R, D].
    """
    width = grad_TD.shape[1]
    grad_TD, other_TD = unit_stride(grad_TD), unit_stride(other_TD)
    sorted_T, order_T = torch.sort(row_T, stable=True)
    first_R1 = torch.searchsorted(sorted_T, torch.arange(num_rows + 1, device=row_T.device))
    blocks = triton.cdiv(width, _BLOCK_D)
    parts = max(1, min(16, _PROGRAMS // (blocks * max(1, num_rows))))
    if interpreting():
        parts = 2
    shape = (parts, num_rows, width)
    sum_PRD = torch.empty(shape, dtype=torch.float32, device=grad_TD.device)
    product_PRD = torch.empty_like(sum_PRD)
    launch(
        _sum_rows,
        (num_rows, parts, blocks),
        grad_TD,
        other_TD,
        mean_T,
        rstd_T,
        order_T,
        first_R1,
        sum_PRD,
        product_PRD,
        num_rows,
        grad_TD.stride(0),
        other_TD.stride(0),
        D=width,
        BLOCK_T=16,
        BLOCK_D=_BLOCK_D,
        num_warps=4,
    )
    return sum_PRD.sum(0), product_PRD.sum(0)
