"""The gradient of attention's queries: one program a tile of queries, over its sequence's keys.

Leaves each row's delta, `sum(grad_out * out)`, for the gradients of keys and values.
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
def add_query_gradient(
    acc1, acc2, queries, k_ptr, v_ptr, columns, length, k_stride, v_stride, scale_log2,
    HEAD_DIM: tl.constexpr, E1: tl.constexpr, E2: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, CHUNK: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Add what one tile of keys gives to the gradient of a tile of queries, but for the scale."""
    q1, q2, q_ptr, q_stride, grad1, grad2, grad_ptr, grad_stride, rows, lse_log2, delta = queries
    k1, k2 = load_rows(k_ptr, columns, length, k_stride, E1, E2, HEAD_DIM, MASKED)
    v1, v2 = load_rows(v_ptr, columns, length, v_stride, E1, E2, HEAD_DIM, MASKED)
    scores = row_products(
        q1, q2, q_ptr, rows, q_stride, k1, k2, k_ptr, columns, k_stride, length,
        BLOCK_M, BLOCK_N, E2, HEAD_DIM, CHUNK,
    )  # fmt: skip
    weights = tl.exp2(scores * scale_log2 - lse_log2[:, None])
    if MASKED:
        weights = tl.where(columns[None, :] < length, weights, 0.0)
    grad_weights = row_products(
        grad1, grad2, grad_ptr, rows, grad_stride, v1, v2, v_ptr, columns, v_stride, length,
        BLOCK_M, BLOCK_N, E2, HEAD_DIM, CHUNK,
    )  # fmt: skip
    grad_scores = weights * (grad_weights - delta[:, None])
    return add_product(grad_scores.to(k1.dtype), k1, k2, acc1, acc2, E2)


@triton.jit(do_not_specialize=["tokens", "sequences"])
def attention_query_gradient_kernel(
    q_ptr, k_ptr, v_ptr, grad_ptr, out_ptr, lse_ptr, delta_ptr, grad_q_ptr, cu_seqlens_ptr,
    scale, tokens, sequences,
    q_token, q_head, k_token, k_head, v_token, v_head, grad_token, grad_head,
    HEADS: tl.constexpr, SHARE: tl.constexpr, UNIT: tl.constexpr, HEAD_DIM: tl.constexpr,
    E1: tl.constexpr, E2: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    CHUNK: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one head: delta, and the gradient over all keys of its sequence."""
    begin, length, first, padding = locate_tile(
        cu_seqlens_ptr, tl.program_id(0), sequences, tokens, BLOCK_M
    )
    if first >= length:
        return
    head = tl.program_id(1)
    rows = first + tl.arange(0, BLOCK_M)
    stride = HEADS * HEAD_DIM
    grad_q_ptr += (begin * HEADS + head) * HEAD_DIM
    acc1, acc2 = zero_rows(BLOCK_M, E1, E2)
    if padding:
        store_rows(grad_q_ptr, acc1, acc2, rows, length, stride, E1, E2, HEAD_DIM)
        return
    q_ptr += (begin * q_token + head * q_head) * UNIT
    k_ptr += (begin * k_token + head // SHARE * k_head) * UNIT
    v_ptr += (begin * v_token + head // SHARE * v_head) * UNIT
    grad_ptr += (begin * grad_token + head * grad_head) * UNIT
    out_ptr += (begin * HEADS + head) * HEAD_DIM
    row_ptrs = head.to(tl.int64) * tokens + begin + rows
    scale_log2 = scale * LOG2_E
    grad1, grad2 = load_rows(grad_ptr, rows, length, grad_token * UNIT, E1, E2, HEAD_DIM, True)
    out1, out2 = load_rows(out_ptr, rows, length, stride, E1, E2, HEAD_DIM, True)
    delta = tl.sum(grad1.to(tl.float32) * out1.to(tl.float32), 1)
    if E2 > 0:
        delta += tl.sum(grad2.to(tl.float32) * out2.to(tl.float32), 1)
    tl.store(delta_ptr + row_ptrs, delta, mask=rows < length)
    lse_log2 = tl.load(lse_ptr + row_ptrs, mask=rows < length, other=0.0) * LOG2_E
    q1, q2 = load_rows(q_ptr, rows, length, q_token * UNIT, E1, E2, HEAD_DIM, True)
    queries = (
        q1, q2, q_ptr, q_token * UNIT, grad1, grad2, grad_ptr, grad_token * UNIT,
        rows, lse_log2, delta,
    )  # fmt: skip
    columns = tl.arange(0, BLOCK_N)
    whole = length // BLOCK_N * BLOCK_N
    if INTERPRET:  # its `range` takes no tensor; the compiler pipelines no `while`
        column = whole * 0
        while column < whole:
            acc1, acc2 = add_query_gradient(
                acc1, acc2, queries, k_ptr, v_ptr, column + columns, length, k_token * UNIT,
                v_token * UNIT, scale_log2, HEAD_DIM, E1, E2, BLOCK_M, BLOCK_N, CHUNK, False,
            )  # fmt: skip
            column += BLOCK_N
    else:
        for column in tl.range(0, whole, BLOCK_N):
            acc1, acc2 = add_query_gradient(
                acc1, acc2, queries, k_ptr, v_ptr, column + columns, length, k_token * UNIT,
                v_token * UNIT, scale_log2, HEAD_DIM, E1, E2, BLOCK_M, BLOCK_N, CHUNK, False,
            )  # fmt: skip
    if whole < length:
        acc1, acc2 = add_query_gradient(
            acc1, acc2, queries, k_ptr, v_ptr, whole + columns, length, k_token * UNIT,
            v_token * UNIT, scale_log2, HEAD_DIM, E1, E2, BLOCK_M, BLOCK_N, CHUNK, True,
        )  # fmt: skip
    if E2 > 0:
        acc2 = acc2 * scale
    store_rows(grad_q_ptr, acc1 * scale, acc2, rows, length, stride, E1, E2, HEAD_DIM)
