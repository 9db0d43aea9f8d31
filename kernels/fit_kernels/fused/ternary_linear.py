"""A linear layer whose weights are -1, 0 or 1, two bits each, unpacked in registers.

A byte holds a weight of each quarter of the features (`fit_kernels.ternary_weights`). A program
reads a tile of bytes once and multiplies by it four times, one product for each quarter: from
memory comes an eighth of what half-precision weights would be. Sums are fp32, and the factor meets
them, so that the product's operands are exact.

Dimension key: T packed tokens, D width of the input, F features, Q = F / 4 rows of bytes.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false
# Kernels are written in Triton's language; a type checker takes them for Python.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fit_kernels.launch import check_dtype, interpreting, launch, stride_unit, unit_stride

_SMALLEST_DOT = 16


@triton.jit
def _values(byte_NK, SHIFT: tl.constexpr, dtype: tl.constexpr):
    """One quarter's weights of a tile of bytes, [K, N]."""
    code_NK = (byte_NK >> SHIFT) & 3
    return tl.trans((code_NK.to(tl.int8) - 1).to(dtype))


@triton.jit
def _add_block(
    acc0, acc1, acc2, acc3, x, packed, first, width, in_x, in_packed, dim_K, MASKED: tl.constexpr
):  # fmt: skip
    """Four products over one block of the width; what lies outside reads as 0 in the tokens."""
    if MASKED:
        inside = (dim_K < width - first)[None, :]
        in_x = in_x & inside
        in_packed = in_packed & inside
    x = tl.load(x + first, mask=in_x, other=0.0)
    byte_NK = tl.load(packed + first, mask=in_packed, other=0)
    acc0 = tl.dot(x, _values(byte_NK, 6, x.dtype), acc0, input_precision="ieee")
    acc1 = tl.dot(x, _values(byte_NK, 4, x.dtype), acc1, input_precision="ieee")
    acc2 = tl.dot(x, _values(byte_NK, 2, x.dtype), acc2, input_precision="ieee")
    acc3 = tl.dot(x, _values(byte_NK, 0, x.dtype), acc3, input_precision="ieee")
    return acc0, acc1, acc2, acc3


@triton.jit
def _store(acc, alpha, bias_ptr, out, row_N, first_feature, in_x, in_packed, packed_rows):
    """Scale one quarter's sums, add its bias and write them."""
    acc *= alpha
    if bias_ptr is not None:
        bias_N = tl.load(bias_ptr + first_feature + row_N, mask=row_N < packed_rows, other=0.0)
        acc += bias_N.to(tl.float32)[None, :]
    tl.store(out + first_feature, acc.to(out.dtype.element_ty), mask=in_x & in_packed)


@triton.jit(do_not_specialize=["num_tokens"])
def _forward(
    x_ptr,  # [T, D]
    packed_ptr,  # uint8 [Q, D]
    alpha_ptr,  # fp32 [1]
    bias_ptr,  # [4 Q] or None
    out_ptr,  # [T, 4 Q] out
    num_tokens,
    width,  # D, in units of UNIT, as the following ones
    packed_rows,  # Q
    x_stride,
    packed_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    MASKED: tl.constexpr,
    UNIT: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    row_N = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    token_M = (tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    dim_K = tl.arange(0, BLOCK_K)
    width *= UNIT
    packed_rows *= UNIT
    in_x, in_packed = (token_M < num_tokens)[:, None], (row_N < packed_rows)[:, None]
    x = x_ptr + token_M[:, None] * (x_stride * UNIT) + dim_K[None, :]
    packed = packed_ptr + row_N.to(tl.int64)[:, None] * (packed_stride * UNIT) + dim_K[None, :]
    acc0 = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    acc1 = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    acc2 = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    acc3 = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if INTERPRET:  # its `range` takes no tensor; the compiler pipelines no `while`
        first = width * 0
        while first < width:
            acc0, acc1, acc2, acc3 = _add_block(
                acc0, acc1, acc2, acc3, x, packed, first, width, in_x, in_packed, dim_K, MASKED
            )  # fmt: skip
            first += BLOCK_K
    else:
        for first in tl.range(0, width, BLOCK_K):
            acc0, acc1, acc2, acc3 = _add_block(
                acc0, acc1, acc2, acc3, x, packed, first, width, in_x, in_packed, dim_K, MASKED
            )  # fmt: skip
    alpha = tl.load(alpha_ptr)
    in_row = (row_N < packed_rows)[None, :]
    out = out_ptr + token_M[:, None] * (4 * packed_rows) + row_N[None, :]
    _store(acc0, alpha, bias_ptr, out, row_N, 0, in_x, in_row, packed_rows)
    _store(acc1, alpha, bias_ptr, out, row_N, packed_rows, in_x, in_row, packed_rows)
    _store(acc2, alpha, bias_ptr, out, row_N, 2 * packed_rows, in_x, in_row, packed_rows)
    _store(acc3, alpha, bias_ptr, out, row_N, 3 * packed_rows, in_x, in_row, packed_rows)


def _tile(width: int, packed_rows: int, dtype: torch.dtype) -> dict[str, int | bool]:
    """How a product is cut; the number of tokens is not asked.

    Four sums stand in registers at once, so that a tile is a quarter as wide as another product's.
    """
    m, n, k, warps, stages = (64, 16, 16, 4, 1) if dtype == torch.float32 else (128, 32, 64, 8, 3)
    k = min(k, max(_SMALLEST_DOT, triton.next_power_of_2(width)))
    return {
        "BLOCK_M": m,
        "BLOCK_N": min(n, max(_SMALLEST_DOT, triton.next_power_of_2(packed_rows))),
        "BLOCK_K": k,
        "MASKED": width % k != 0,
        "num_warps": warps,
        "num_stages": stages,
    }


def ternary_linear(
    x_TD: Tensor, packed_QD: Tensor, alpha_1: Tensor, bias_F: Tensor | None
) -> Tensor:
    """`x @ (alpha values)^T + bias`, [T, F].

    Raises:
        ValueError: a dtype that the kernel does not take.
    """
    check_dtype("ternary_linear", x_TD, alpha_1, bias_F)
    if packed_QD.dtype != torch.uint8:
        raise ValueError(f"ternary_linear: packed weights are {packed_QD.dtype}, not uint8")
    (num_tokens, width), packed_rows = x_TD.shape, packed_QD.shape[0]
    assert packed_QD.shape[1] == width, (x_TD.shape, packed_QD.shape)
    x_TD, packed_QD = unit_stride(x_TD), unit_stride(packed_QD)
    out_TF = torch.empty(num_tokens, 4 * packed_rows, dtype=x_TD.dtype, device=x_TD.device)
    tile = _tile(width, packed_rows, x_TD.dtype)
    strides = x_TD.stride(0), packed_QD.stride(0)
    unit = stride_unit(width, packed_rows, *strides)
    launch(
        _forward,
        (triton.cdiv(packed_rows, tile["BLOCK_N"]), triton.cdiv(num_tokens, tile["BLOCK_M"])),
        x_TD,
        packed_QD,
        alpha_1.float(),
        None if bias_F is None else unit_stride(bias_F),
        out_TF,
        num_tokens,
        *(size // unit for size in (width, packed_rows, *strides)),
        UNIT=unit,
        INTERPRET=interpreting(),
        **tile,
    )
    return out_TF
