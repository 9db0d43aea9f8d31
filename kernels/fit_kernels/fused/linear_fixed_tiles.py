"""A linear layer whose rows do not notice how many they are.

A library's product picks its tiles, and whether to split the sum, by the number of rows; here the
weight's shape and the dtype alone decide. A program sums over the whole width, block after block in
fp32, so that the bits of a token's result depend on that token and the weights.

Dimension key: T packed tokens, D width of the input, F features of the output.
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
_ALIGNED = 8  # values of 16 bits in 16 bytes


@triton.jit
def _add_block(
    acc, x, weight, first, width, in_x, in_weight, dim_K, MASKED: tl.constexpr
):  # fmt: skip
    """`acc + x @ weight^T` over one block of the width; what lies outside reads as 0."""
    if MASKED:
        inside = (dim_K < width - first)[None, :]
        in_x = in_x & inside
        in_weight = in_weight & inside
    x = tl.load(x + first, mask=in_x, other=0.0)
    weight = tl.load(weight + first, mask=in_weight, other=0.0)
    return tl.dot(x, tl.trans(weight), acc, input_precision="ieee")


@triton.jit(do_not_specialize=["num_tokens"])
def _forward(
    x_ptr,  # [T, D]
    weight_ptr,  # [F, D]
    bias_ptr,  # [F] or None
    out_ptr,  # [T, F] out
    num_tokens,
    width,  # D, in units of UNIT, as the following ones
    features,  # F
    x_stride,
    weight_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    MASKED: tl.constexpr,
    UNIT: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    # Neighbouring programs differ in features: those that run together read a squarish piece.
    feature_N = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    token_M = (tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    dim_K = tl.arange(0, BLOCK_K)
    width *= UNIT
    features *= UNIT
    in_x, in_weight = (token_M < num_tokens)[:, None], (feature_N < features)[:, None]
    x = x_ptr + token_M[:, None] * (x_stride * UNIT) + dim_K[None, :]
    weight = weight_ptr + feature_N.to(tl.int64)[:, None] * (weight_stride * UNIT) + dim_K[None, :]
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if INTERPRET:  # its `range` takes no tensor; the compiler pipelines no `while`
        first = width * 0
        while first < width:
            acc = _add_block(acc, x, weight, first, width, in_x, in_weight, dim_K, MASKED)
            first += BLOCK_K
    else:
        for first in tl.range(0, width, BLOCK_K):
            acc = _add_block(acc, x, weight, first, width, in_x, in_weight, dim_K, MASKED)
    if bias_ptr is not None:
        bias_N = tl.load(bias_ptr + feature_N, mask=feature_N < features, other=0.0)
        acc += bias_N.to(tl.float32)[None, :]
    target = out_ptr + token_M[:, None] * features + feature_N[None, :]
    tl.store(target, acc.to(out_ptr.dtype.element_ty), mask=in_x & (feature_N < features)[None, :])


def _tile(width: int, features: int, dtype: torch.dtype) -> dict[str, int | bool]:
    """How a product is cut; the number of tokens is not asked.

    Exact fp32 products run outside the tensor cores, where a thread holds whole rows of its
    operands: short ones, or they do not fit into its registers. Rows that do not begin at multiples
    of 16 bytes need more copies, and as many pointers: these too are cut shorter.
    """
    m, n, k, warps, stages = (64, 64, 16, 4, 1) if dtype == torch.float32 else (128, 128, 64, 8, 3)
    if width % _ALIGNED != 0:
        k = min(k, 32)
    k = min(k, max(_SMALLEST_DOT, triton.next_power_of_2(width)))
    return {
        "BLOCK_M": m,
        "BLOCK_N": min(n, max(_SMALLEST_DOT, triton.next_power_of_2(features))),
        "BLOCK_K": k,
        "MASKED": width % k != 0,
        "num_warps": warps,
        "num_stages": stages,
    }


def linear_fixed_tiles(x_TD: Tensor, weight_FD: Tensor, bias_F: Tensor | None) -> Tensor:
    """`x @ weight^T + bias`, [T, F].

    Raises:
        ValueError: a dtype that the kernel does not take, or tensors of unlike dtypes.
    """
    check_dtype("linear_fixed_tiles", x_TD, weight_FD, bias_F)
    dtypes = {t.dtype for t in (x_TD, weight_FD, bias_F) if t is not None}
    if len(dtypes) > 1:
        raise ValueError(f"linear_fixed_tiles: dtypes are unlike: {sorted(map(str, dtypes))}")
    (num_tokens, width), features = x_TD.shape, weight_FD.shape[0]
    assert weight_FD.shape[1] == width, (x_TD.shape, weight_FD.shape)
    x_TD, weight_FD = unit_stride(x_TD), unit_stride(weight_FD)
    out_TF = torch.empty(num_tokens, features, dtype=x_TD.dtype, device=x_TD.device)
    tile = _tile(width, features, x_TD.dtype)
    strides = x_TD.stride(0), weight_FD.stride(0)
    unit = stride_unit(width, features, *strides)
    launch(
        _forward,
        (triton.cdiv(features, tile["BLOCK_N"]), triton.cdiv(num_tokens, tile["BLOCK_M"])),
        x_TD,
        weight_FD,
        None if bias_F is None else unit_stride(bias_F),
        out_TF,
        num_tokens,
        *(size // unit for size in (width, features, *strides)),
        UNIT=unit,
        INTERPRET=interpreting(),
        **tile,
    )
    return out_TF
