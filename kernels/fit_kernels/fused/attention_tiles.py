"""What the kernels of attention share: how they are cut, whose a tile is, rows of heads.

A grid axis has `T // BLOCK + S + 1` programs, which depends on shapes alone, so that a CUDA graph
can be replayed with other offsets. Sequence s owns the programs from `cu_seqlens[s] // BLOCK + s`
up to the next sequence's: always enough for its tiles, at most one too many, and that one leaves at
once. Tokens past the last offset (padding) count as one more sequence, whose rows become zeros.

A head dim that is no power of two is covered in two pieces, 72 as 64 + 16, which does 0.63 times
the multiplications of a block of 128; the pieces share one tile of scores. Where one piece is
enough the second stands there as a placeholder, so that helpers always take and give a pair.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false
# Kernels are written in Triton's language; a type checker takes them for Python.

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fit_kernels.launch import check_dtype, interpreting, two_pieces, unit_stride

MAX_HEAD_DIM = 128
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
_SMALLEST_DOT = 16


class Tiles(NamedTuple):
    """How a kernel is cut.

    Attributes:
        block_m: queries of a tile.
        block_n: keys of a tile.
        num_warps, num_stages: how it is compiled.
        widest: the widest piece of a head dim.
        chunk: of the head dim, for dot products of rows in exact fp32; 0 is all at once.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    widest: int = MAX_HEAD_DIM
    chunk: int = 0

    def constants(self, head_dim: int) -> dict[str, int | bool]:
        """Compile-time constants that every kernel of attention has."""
        larger, smaller = head_pieces(head_dim, self.widest)
        return {
            "HEAD_DIM": head_dim,
            "E1": larger,
            "E2": smaller,
            "BLOCK_M": self.block_m,
            "BLOCK_N": self.block_n,
            "CHUNK": self.chunk,
            "INTERPRET": interpreting(),
        }


def head_pieces(head_dim: int, widest: int = MAX_HEAD_DIM) -> tuple[int, int]:
    """Cover a head dim by powers of two of at least 16; the second is 0 where one is enough."""
    larger, smaller = two_pieces(head_dim, _SMALLEST_DOT)
    if head_dim <= larger:
        return larger, 0
    if larger == smaller and 2 * larger <= widest:
        return 2 * larger, 0
    return larger, smaller


def checked(
    q_THE: Tensor, k_TGE: Tensor, v_TGE: Tensor, cu_seqlens: Tensor, scale: float | None
) -> tuple[Tensor, Tensor, Tensor, float]:
    """Return what the kernels take: unit last strides, and the scale that None stands for.

    Raises:
        ValueError: a dtype, head dim, number of heads or scale that the kernels do not take.
    """
    check_dtype("attention_varlen", q_THE)
    heads, head_dim = q_THE.shape[1:]
    if head_dim > MAX_HEAD_DIM:
        raise ValueError(f"attention_varlen: head_dim is {head_dim}; at most {MAX_HEAD_DIM}")
    if heads % k_TGE.shape[1] != 0:
        raise ValueError(f"attention_varlen: {heads} heads for {k_TGE.shape[1]} heads of keys")
    if scale is not None and scale <= 0.0:
        raise ValueError(f"attention_varlen: scale is {scale}; it must be above 0")
    assert q_THE.dtype == k_TGE.dtype == v_TGE.dtype, (q_THE.dtype, k_TGE.dtype, v_TGE.dtype)
    assert k_TGE.shape == v_TGE.shape, (k_TGE.shape, v_TGE.shape)
    assert cu_seqlens.dtype == torch.int32, cu_seqlens.dtype
    assert cu_seqlens.is_contiguous(), cu_seqlens.stride()
    factor = head_dim**-0.5 if scale is None else scale
    return unit_stride(q_THE), unit_stride(k_TGE), unit_stride(v_TGE), factor


@triton.jit
def locate_tile(cu_seqlens_ptr, tile, sequences, tokens, BLOCK: tl.constexpr):
    """Find the sequence of a tile: its first token, length, the tile's first row; is it padding."""
    low = tile * 0
    high = low + sequences
    while low < high:
        middle = (low + high + 1) // 2
        reached = tl.load(cu_seqlens_ptr + middle) // BLOCK + middle <= tile
        low = tl.where(reached, middle, low)
        high = tl.where(reached, high, middle - 1)
    start = tl.load(cu_seqlens_ptr + low)
    end = tl.load(cu_seqlens_ptr + low + 1, mask=low < sequences, other=tokens)
    row = (tile - start // BLOCK - low) * BLOCK
    return start.to(tl.int64), end - start, row, low == sequences


@triton.jit
def load_piece(
    ptr, rows, length, stride,
    FIRST: tl.constexpr, SIZE: tl.constexpr, HEAD_DIM: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Load dims FIRST to FIRST + SIZE of some rows; what lies outside reads as 0."""
    dims = FIRST + tl.arange(0, SIZE)
    pointers = ptr + rows[:, None] * stride + dims[None, :]
    if FIRST + SIZE > HEAD_DIM:
        if MASKED:
            inside = (rows[:, None] < length) & (dims[None, :] < HEAD_DIM)
            return tl.load(pointers, mask=inside, other=0.0)
        else:
            return tl.load(pointers, mask=dims[None, :] < HEAD_DIM, other=0.0)
    else:
        if MASKED:
            return tl.load(pointers, mask=rows[:, None] < length, other=0.0)
        else:
            return tl.load(pointers)


@triton.jit
def load_rows(
    ptr, rows, length, stride,
    E1: tl.constexpr, E2: tl.constexpr, HEAD_DIM: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Load rows of one head in both pieces; MASKED where some may lie past the sequence's end."""
    piece1 = load_piece(ptr, rows, length, stride, 0, E1, HEAD_DIM, MASKED)
    piece2 = piece1
    if E2 > 0:
        piece2 = load_piece(ptr, rows, length, stride, E1, E2, HEAD_DIM, MASKED)
    return piece1, piece2


@triton.jit
def store_rows(
    ptr, piece1, piece2, rows, length, stride,
    E1: tl.constexpr, E2: tl.constexpr, HEAD_DIM: tl.constexpr,
):  # fmt: skip
    """Store both pieces of the rows that lie inside the sequence."""
    dims = tl.arange(0, E1)
    inside = (rows[:, None] < length) & (dims[None, :] < HEAD_DIM)
    pointers = ptr + rows[:, None] * stride + dims[None, :]
    tl.store(pointers, piece1.to(ptr.dtype.element_ty), mask=inside)
    if E2 > 0:
        dims = E1 + tl.arange(0, E2)
        inside = (rows[:, None] < length) & (dims[None, :] < HEAD_DIM)
        pointers = ptr + rows[:, None] * stride + dims[None, :]
        tl.store(pointers, piece2.to(ptr.dtype.element_ty), mask=inside)


@triton.jit
def zero_rows(BLOCK: tl.constexpr, E1: tl.constexpr, E2: tl.constexpr):
    """Both pieces of a tile of zeros in fp32."""
    piece1 = tl.zeros((BLOCK, E1), tl.float32)
    piece2 = piece1
    if E2 > 0:
        piece2 = tl.zeros((BLOCK, E2), tl.float32)
    return piece1, piece2


@triton.jit
def add_product(a, b1, b2, acc1, acc2, E2: tl.constexpr):
    """`acc + a @ b` for both pieces of b."""
    acc1 = tl.dot(a, b1, acc1, input_precision="ieee")
    if E2 > 0:
        acc2 = tl.dot(a, b2, acc2, input_precision="ieee")
    return acc1, acc2


@triton.jit
def row_products(
    a1, a2, a_ptr, a_rows, a_stride, b1, b2, b_ptr, b_rows, b_stride, length,
    BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr, E2: tl.constexpr,
    HEAD_DIM: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Dot products of rows with rows, [BLOCK_A, BLOCK_B]: of the pieces at hand, or in chunks.

    Exact fp32 products run outside the tensor cores, where each thread holds whole rows of its
    operands: 64 dims at once do not fit into its registers, so chunks are loaded from memory.
    """
    if CHUNK == 0:
        products = tl.dot(a1, tl.trans(b1))
        if E2 > 0:
            products = tl.dot(a2, tl.trans(b2), products)
    else:
        products = tl.zeros((BLOCK_A, BLOCK_B), tl.float32)
        dims = tl.arange(0, CHUNK)[None, :]
        for first in tl.range(0, HEAD_DIM, CHUNK):
            inside = dims < HEAD_DIM - first
            a_inside, b_inside = a_rows[:, None] < length, b_rows[:, None] < length
            a_ptrs = a_ptr + first + a_rows[:, None] * a_stride + dims
            b_ptrs = b_ptr + first + b_rows[:, None] * b_stride + dims
            a = tl.load(a_ptrs, mask=inside & a_inside, other=0.0)
            b = tl.load(b_ptrs, mask=inside & b_inside, other=0.0)
            products = tl.dot(a, tl.trans(b), products, input_precision="ieee")
    return products
