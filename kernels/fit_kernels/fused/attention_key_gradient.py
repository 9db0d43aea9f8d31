"""The gradients of attention's keys and values: one program a tile of keys, over all queries.

Sums over the query heads that share a key head, too, so that no two programs add to one place.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false
# Kernels are written in Triton's language; a type checker takes them for Python.

import triton
import triton.language as tl

from fit_kernels.fused.attention_tiles import (
    LOG2_E,
    add_product,
    load_rows,
    locate_tile,
    row_products,
    store_rows,
    zero_rows,
)


@triton.jit
def add_key_gradients(
    state, keys, q_ptr, grad_ptr, lse_ptr, delta_ptr, rows, length, q_stride, grad_stride,
    scale_log2,
    HEAD_DIM: tl.constexpr, E1: tl.constexpr, E2: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, CHUNK: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Add what one tile of queries gives to a tile of keys and values; scores are transposed.

    Rows past the end read as zeros of q and grad and as an infinite lse: they add nothing.
    """
    acc_k1, acc_k2, acc_v1, acc_v2 = state
    k1, k2, k_ptr, k_stride, v1, v2, v_ptr, v_stride, columns = keys
    q1, q2 = load_rows(q_ptr, rows, length, q_stride, E1, E2, HEAD_DIM, MASKED)
    grad1, grad2 = load_rows(grad_ptr, rows, length, grad_stride, E1, E2, HEAD_DIM, MASKED)
    if MASKED:
        lse_log2 = tl.load(lse_ptr + rows, mask=rows < length, other=float("inf")) * LOG2_E
        delta = tl.load(delta_ptr + rows, mask=rows < length, other=0.0)
    else:
        lse_log2 = tl.load(lse_ptr + rows) * LOG2_E
        delta = tl.load(delta_ptr + rows)
    scores = row_products(
        k1, k2, k_ptr, columns, k_stride, q1, q2, q_ptr, rows, q_stride, length,
        BLOCK_N, BLOCK_M, E2, HEAD_DIM, CHUNK,
    )  # fmt: skip
    weights = tl.exp2(scores * scale_log2 - lse_log2[None, :])
    acc_v1, acc_v2 = add_product(weights.to(grad1.dtype), grad1, grad2, acc_v1, acc_v2, E2)
    grad_weights = row_products(
        v1, v2, v_ptr, columns, v_stride, grad1, grad2, grad_ptr, rows, grad_stride, length,
        BLOCK_N, BLOCK_M, E2, HEAD_DIM, CHUNK,
    )  # fmt: skip
    grad_scores = weights * (grad_weights - delta[None, :])
    acc_k1, acc_k2 = add_product(grad_scores.to(q1.dtype), q1, q2, acc_k1, acc_k2, E2)
    return acc_k1, acc_k2, acc_v1, acc_v2


@triton.jit(do_not_specialize=["tokens", "sequences"])
def attention_key_gradient_kernel(
    q_ptr, k_ptr, v_ptr, grad_ptr, lse_ptr, delta_ptr, grad_k_ptr, grad_v_ptr, cu_seqlens_ptr,
    scale, tokens, sequences,
    q_token, q_head, k_token, k_head, v_token, v_head, grad_token, grad_head,
    HEADS: tl.constexpr, SHARE: tl.constexpr, UNIT: tl.constexpr, HEAD_DIM: tl.constexpr,
    E1: tl.constexpr, E2: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    CHUNK: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    """One tile of keys and values of one head, over all queries of all heads that share it."""
    begin, length, first, padding = locate_tile(
        cu_seqlens_ptr, tl.program_id(0), sequences, tokens, BLOCK_N
    )
    if first >= length:
        return
    key_head = tl.program_id(1)
    columns = first + tl.arange(0, BLOCK_N)
    stride = HEADS // SHARE * HEAD_DIM
    grad_k_ptr += begin * stride + key_head * HEAD_DIM
    grad_v_ptr += begin * stride + key_head * HEAD_DIM
    zeros1, zeros2 = zero_rows(BLOCK_N, E1, E2)
    if padding:
        store_rows(grad_k_ptr, zeros1, zeros2, columns, length, stride, E1, E2, HEAD_DIM)
        store_rows(grad_v_ptr, zeros1, zeros2, columns, length, stride, E1, E2, HEAD_DIM)
        return
    k_ptr += (begin * k_token + key_head * k_head) * UNIT
    v_ptr += (begin * v_token + key_head * v_head) * UNIT
    scale_log2 = scale * LOG2_E
    k1, k2 = load_rows(k_ptr, columns, length, k_token * UNIT, E1, E2, HEAD_DIM, True)
    v1, v2 = load_rows(v_ptr, columns, length, v_token * UNIT, E1, E2, HEAD_DIM, True)
    keys = (k1, k2, k_ptr, k_token * UNIT, v1, v2, v_ptr, v_token * UNIT, columns)
    state = (zeros1, zeros2, zeros1, zeros2)
    rows = tl.arange(0, BLOCK_M)
    whole = length // BLOCK_M * BLOCK_M
    for share in tl.range(0, SHARE):
        head = key_head * SHARE + share
        by_row = head.to(tl.int64) * tokens + begin
        q_at = q_ptr + (begin * q_token + head * q_head) * UNIT
        grad_at = grad_ptr + (begin * grad_token + head * grad_head) * UNIT
        lse_at, delta_at = lse_ptr + by_row, delta_ptr + by_row
        if INTERPRET:  # its `range` takes no tensor; the compiler pipelines no `while`
            row = whole * 0
            while row < whole:
                state = add_key_gradients(
                    state, keys, q_at, grad_at, lse_at, delta_at, row + rows, length,
                    q_token * UNIT, grad_token * UNIT, scale_log2,
                    HEAD_DIM, E1, E2, BLOCK_M, BLOCK_N, CHUNK, False,
                )  # fmt: skip
                row += BLOCK_M
        else:
            for row in tl.range(0, whole, BLOCK_M):
                state = add_key_gradients(
                    state, keys, q_at, grad_at, lse_at, delta_at, row + rows, length,
                    q_token * UNIT, grad_token * UNIT, scale_log2,
                    HEAD_DIM, E1, E2, BLOCK_M, BLOCK_N, CHUNK, False,
                )  # fmt: skip
        if whole < length:
            state = add_key_gradients(
                state, keys, q_at, grad_at, lse_at, delta_at, whole + rows, length,
                q_token * UNIT, grad_token * UNIT, scale_log2,
                HEAD_DIM, E1, E2, BLOCK_M, BLOCK_N, CHUNK, True,
            )  # fmt: skip
    acc_k1, acc_k2, acc_v1, acc_v2 = state
    if E2 > 0:
        acc_k2 = acc_k2 * scale
    store_rows(grad_k_ptr, acc_k1 * scale, acc_k2, columns, length, stride, E1, E2, HEAD_DIM)
    store_rows(grad_v_ptr, acc_v1, acc_v2, columns, length, stride, E1, E2, HEAD_DIM)
