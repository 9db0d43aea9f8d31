"""Attention inside each sequence of a pack, forward: FlashAttention over `cu_seqlens`.

Softmax is taken online in fp32 (FlashAttention-2, arXiv:2307.08691, algorithm 1), in base 2; the
logarithm of each row's sum is kept for the backward (`attention_varlen_backward.py`). A program
reads nothing but its own sequence, in an order that depends on nothing but its length: the bits of
a sequence do not depend on its neighbours.

Dimension key: T packed tokens, S sequences, H query heads, G key and value heads, E head dim.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false
# Kernels are written in Triton's language; a type checker takes them for Python.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fit_kernels.fused.attention_tiles import (
    LN_2,
    LOG2_E,
    Tiles,
    add_product,
    checked,
    load_rows,
    locate_tile,
    row_products,
    store_rows,
    zero_rows,
)
from fit_kernels.launch import launch, stride_unit


def forward_tiles(head_dim: int, dtype: torch.dtype) -> Tiles:
    """Choose tiles that spill no register on sm_80, sm_90 and sm_100, in Triton 3.6 and 3.9.

    64 + 16 dims leave room for three programs of 64 rows on a multiprocessor of sm_90; the others
    take 128 rows, which read their keys half as often.
    """
    if dtype == torch.float32:
        return Tiles(64, 16, 8, 1, widest=64, chunk=16)
    if 64 < head_dim <= 80:
        return Tiles(64, 64, 4, 3)
    return Tiles(128, 64, 8, 3)


def attention_varlen_forward(
    q_THE: Tensor,
    k_TGE: Tensor,
    v_TGE: Tensor,
    cu_seqlens: Tensor,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the output [T, H, E] and the log-sum-exp of each row's logits, fp32 [H, T].

    Args:
        q_THE: queries; any strides of tokens and heads, and so with keys and values.
        k_TGE: keys; each of its heads serves H / G neighbouring heads of queries.
        v_TGE: values.
        cu_seqlens: int32 [S + 1], contiguous; sequences may be empty, and tokens past the last
            offset get zeros.
        scale: of the logits; `E ** -0.5` if None.

    Raises:
        ValueError: a dtype, head dim, number of heads or scale that the kernel does not take.
    """
    q_THE, k_TGE, v_TGE, scale = checked(q_THE, k_TGE, v_TGE, cu_seqlens, scale)
    tokens, heads, head_dim = q_THE.shape
    sequences = cu_seqlens.shape[0] - 1
    out_THE = torch.empty((tokens, heads, head_dim), dtype=q_THE.dtype, device=q_THE.device)
    lse_HT = torch.empty((heads, tokens), dtype=torch.float32, device=q_THE.device)
    tiles = forward_tiles(head_dim, q_THE.dtype)
    unit = stride_unit(*(s for x in (q_THE, k_TGE, v_TGE) for s in x.stride()[:2]))
    launch(
        attention_forward_kernel,
        (tokens // tiles.block_m + sequences + 1, heads),
        q_THE, k_TGE, v_TGE, out_THE, lse_HT, cu_seqlens, scale * LOG2_E.value, tokens, sequences,
        *(x.stride(dim) // unit for x in (q_THE, k_TGE, v_TGE) for dim in (0, 1)),
        HEADS=heads, SHARE=heads // k_TGE.shape[1], UNIT=unit, **tiles.constants(head_dim),
        num_warps=tiles.num_warps, num_stages=tiles.num_stages,
    )  # fmt: skip
    return out_THE, lse_HT


@triton.jit
def attend_to_keys(
    state, queries, k_ptr, v_ptr, columns, length, k_stride, v_stride, scale_log2,
    HEAD_DIM: tl.constexpr, E1: tl.constexpr, E2: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, CHUNK: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Take one tile of keys into the running sums."""
    acc1, acc2, peak, total = state
    q1, q2, q_ptr, rows, q_stride = queries
    k1, k2 = load_rows(k_ptr, columns, length, k_stride, E1, E2, HEAD_DIM, MASKED)
    scores = row_products(
        q1, q2, q_ptr, rows, q_stride, k1, k2, k_ptr, columns, k_stride, length,
        BLOCK_M, BLOCK_N, E2, HEAD_DIM, CHUNK,
    )  # fmt: skip
    if MASKED:
        scores = tl.where(columns[None, :] < length, scores, float("-inf"))
    new_peak = tl.maximum(peak, tl.max(scores, 1) * scale_log2)
    weights = tl.exp2(scores * scale_log2 - new_peak[:, None])
    shrink = tl.exp2(peak - new_peak)
    total = total * shrink + tl.sum(weights, 1)
    acc1 = acc1 * shrink[:, None]
    if E2 > 0:
        acc2 = acc2 * shrink[:, None]
    v1, v2 = load_rows(v_ptr, columns, length, v_stride, E1, E2, HEAD_DIM, MASKED)
    acc1, acc2 = add_product(weights.to(v1.dtype), v1, v2, acc1, acc2, E2)
    return acc1, acc2, new_peak, total


@triton.jit(do_not_specialize=["tokens", "sequences"])
def attention_forward_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, cu_seqlens_ptr, scale_log2, tokens, sequences,
    q_token, q_head, k_token, k_head, v_token, v_head,
    HEADS: tl.constexpr, SHARE: tl.constexpr, UNIT: tl.constexpr, HEAD_DIM: tl.constexpr,
    E1: tl.constexpr, E2: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    CHUNK: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one head, over all keys of its sequence."""
    begin, length, first, padding = locate_tile(
        cu_seqlens_ptr, tl.program_id(0), sequences, tokens, BLOCK_M
    )
    if first >= length:
        return
    head = tl.program_id(1)
    rows = first + tl.arange(0, BLOCK_M)
    out_ptr += (begin * HEADS + head) * HEAD_DIM
    lse_ptr += head.to(tl.int64) * tokens + begin
    acc1, acc2 = zero_rows(BLOCK_M, E1, E2)
    total = tl.zeros((BLOCK_M,), tl.float32)
    if padding:
        store_rows(out_ptr, acc1, acc2, rows, length, HEADS * HEAD_DIM, E1, E2, HEAD_DIM)
        tl.store(lse_ptr + rows, total, mask=rows < length)
        return
    q_ptr += (begin * q_token + head * q_head) * UNIT
    k_ptr += (begin * k_token + head // SHARE * k_head) * UNIT
    v_ptr += (begin * v_token + head // SHARE * v_head) * UNIT
    q1, q2 = load_rows(q_ptr, rows, length, q_token * UNIT, E1, E2, HEAD_DIM, True)
    queries = (q1, q2, q_ptr, rows, q_token * UNIT)
    state = (acc1, acc2, total - float("inf"), total)
    columns = tl.arange(0, BLOCK_N)
    whole = length // BLOCK_N * BLOCK_N
    if INTERPRET:  # its `range` takes no tensor; the compiler pipelines no `while`
        column = whole * 0
        while column < whole:
            state = attend_to_keys(
                state, queries, k_ptr, v_ptr, column + columns, length, k_token * UNIT,
                v_token * UNIT, scale_log2, HEAD_DIM, E1, E2, BLOCK_M, BLOCK_N, CHUNK, False,
            )  # fmt: skip
            column += BLOCK_N
    else:
        for column in tl.range(0, whole, BLOCK_N):
            state = attend_to_keys(
                state, queries, k_ptr, v_ptr, column + columns, length, k_token * UNIT,
                v_token * UNIT, scale_log2, HEAD_DIM, E1, E2, BLOCK_M, BLOCK_N, CHUNK, False,
            )  # fmt: skip
    if whole < length:
        state = attend_to_keys(
            state, queries, k_ptr, v_ptr, whole + columns, length, k_token * UNIT,
            v_token * UNIT, scale_log2, HEAD_DIM, E1, E2, BLOCK_M, BLOCK_N, CHUNK, True,
        )  # fmt: skip
    acc1, acc2, peak, total = state
    inverse = (1.0 / total)[:, None]
    if E2 > 0:
        acc2 = acc2 * inverse
    store_rows(out_ptr, acc1 * inverse, acc2, rows, length, HEADS * HEAD_DIM, E1, E2, HEAD_DIM)
    tl.store(lse_ptr + rows, (peak + tl.log2(total)) * LN_2, mask=rows < length)
