"""QK-norm and 2-D rotation, straight from the packed projection to what attention reads.

One program turns the queries, or the keys, of one token: its row of the rotary slab is read once
for all heads. Values are not touched; attention reads them where the projection left them.

Dimension key: T packed tokens, H query heads, G key heads, X = H + 2G heads of the projection,
J = H + G, E head dim, P rows of the rotary slab.
"""

# pyright: reportArgumentType=false, reportOperatorIssue=false, reportPossiblyUnboundVariable=false
# Kernels are written in Triton's language; a type checker takes them for Python.

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fit_kernels.fused.pairs import (
    load_pairs,
    load_turn,
    normalise,
    normalise_backward,
    store_pairs,
)
from fit_kernels.launch import check_dtype, launch, stride_unit, two_pieces, unit_stride
from fit_kernels.norms import NORMS, unknown_norm
from fit_kernels.reference import key_heads

# Tokens of one program where it also sums gradients of the norm's weights.
_TOKENS_PER_SUM = 32


@triton.jit
def _forward(
    qkv_ptr,  # [T, X, E]
    cos_ptr,  # fp32 [P, E/2]
    sin_ptr,  # fp32 [P, E/2]
    row_ptr,  # int64 [T]
    weight_ptr,  # [J, E] or None
    bias_ptr,  # [J, E] or None
    q_ptr,  # [T, H, E] out
    k_ptr,  # [T, G, E] out
    token_stride,  # this and the following strides in units of UNIT
    head_stride,
    eps,
    H: tl.constexpr,
    G: tl.constexpr,
    E: tl.constexpr,
    HEADS: tl.constexpr,
    A: tl.constexpr,
    B: tl.constexpr,
    NORM: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    UNIT: tl.constexpr,
):
    token, is_key = tl.program_id(0).to(tl.int64), tl.program_id(1)
    heads, first_head = H, 0
    out_ptr = q_ptr
    if is_key == 1:
        heads, first_head = G, H
        out_ptr = k_ptr
    head_J = tl.arange(0, HEADS)
    keep_J = head_J < heads
    base_J = qkv_ptr + (token * token_stride + (first_head + head_J) * head_stride) * UNIT
    fa, sa = load_pairs(base_J, keep_J, 0, A, E, INTERLEAVED)
    fb, sb = load_pairs(base_J, keep_J, A, B, E, INTERLEAVED)
    if NORM != "none":
        fa, sa, fb, sb, _ = normalise(fa, sa, fb, sb, eps, A, B, E, NORM)
    if weight_ptr is not None:
        weight_J = weight_ptr + (first_head + head_J) * E
        wfa, wsa = load_pairs(weight_J, keep_J, 0, A, E, INTERLEAVED)
        wfb, wsb = load_pairs(weight_J, keep_J, A, B, E, INTERLEAVED)
        fa, sa, fb, sb = fa * wfa, sa * wsa, fb * wfb, sb * wsb
    if bias_ptr is not None:
        bias_J = bias_ptr + (first_head + head_J) * E
        bfa, bsa = load_pairs(bias_J, keep_J, 0, A, E, INTERLEAVED)
        bfb, bsb = load_pairs(bias_J, keep_J, A, B, E, INTERLEAVED)
        fa, sa, fb, sb = fa + bfa, sa + bsa, fb + bfb, sb + bsb
    row = tl.load(row_ptr + token)
    out_J = out_ptr + (token * heads + head_J) * E
    cos, sin = load_turn(cos_ptr, sin_ptr, row, 0, A, E)
    store_pairs(out_J, keep_J, fa * cos - sa * sin, fa * sin + sa * cos, 0, A, E, INTERLEAVED)
    cos, sin = load_turn(cos_ptr, sin_ptr, row, A, B, E)
    store_pairs(out_J, keep_J, fb * cos - sb * sin, fb * sin + sb * cos, A, B, E, INTERLEAVED)


@triton.jit(do_not_specialize=["num_tokens"])
def _backward(
    qkv_ptr,  # [T, X, E]
    grad_q_ptr,  # [T, H, E]
    grad_k_ptr,  # [T, G, E]
    cos_ptr,  # fp32 [P, E/2]
    sin_ptr,  # fp32 [P, E/2]
    row_ptr,  # int64 [T]
    weight_ptr,  # [J, E] or None
    grad_qkv_ptr,  # [T, X, E] out; its values' part is somebody else's
    grad_weight_ptr,  # fp32 [programs, J, E] out, or None
    grad_bias_ptr,  # fp32 [programs, J, E] out, or None
    num_tokens,
    token_stride,  # this and the following strides in units of UNIT
    head_stride,
    q_token_stride,
    q_head_stride,
    k_token_stride,
    k_head_stride,
    eps,
    H: tl.constexpr,
    G: tl.constexpr,
    E: tl.constexpr,
    HEADS: tl.constexpr,
    A: tl.constexpr,
    B: tl.constexpr,
    NORM: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    UNIT: tl.constexpr,
    TOKENS: tl.constexpr,
):
    is_key = tl.program_id(1)
    heads, first_head, grad_ptr = H, 0, grad_q_ptr
    grad_token, grad_head = q_token_stride, q_head_stride
    if is_key == 1:
        heads, first_head, grad_ptr = G, H, grad_k_ptr
        grad_token, grad_head = k_token_stride, k_head_stride
    head_J = tl.arange(0, HEADS)
    weight_J = first_head + head_J
    wfa, wsa, wfb, wsb = 1.0, 1.0, 1.0, 1.0
    if weight_ptr is not None:
        wfa, wsa = load_pairs(weight_ptr + weight_J * E, head_J < heads, 0, A, E, INTERLEAVED)
        wfb, wsb = load_pairs(weight_ptr + weight_J * E, head_J < heads, A, B, E, INTERLEAVED)
    sum_fa = tl.zeros((HEADS, A), tl.float32)
    sum_fb = tl.zeros((HEADS, B), tl.float32)
    sum_sa, sum_sb = sum_fa, sum_fb
    bias_fa, bias_sa, bias_fb, bias_sb = sum_fa, sum_fa, sum_fb, sum_fb
    for index in range(TOKENS):
        token = tl.program_id(0).to(tl.int64) * TOKENS + index
        keep_J = head_J < tl.where(token < num_tokens, heads, 0)
        base_J = qkv_ptr + (token * token_stride + (first_head + head_J) * head_stride) * UNIT
        fa, sa = load_pairs(base_J, keep_J, 0, A, E, INTERLEAVED)
        fb, sb = load_pairs(base_J, keep_J, A, B, E, INTERLEAVED)
        grad_J = grad_ptr + (token * grad_token + head_J * grad_head) * UNIT
        turned_f, turned_s = load_pairs(grad_J, keep_J, 0, A, E, INTERLEAVED)
        row = tl.load(row_ptr + token, mask=token < num_tokens, other=0)
        cos, sin = load_turn(cos_ptr, sin_ptr, row, 0, A, E)
        gfa, gsa = turned_f * cos + turned_s * sin, turned_s * cos - turned_f * sin
        turned_f, turned_s = load_pairs(grad_J, keep_J, A, B, E, INTERLEAVED)
        cos, sin = load_turn(cos_ptr, sin_ptr, row, A, B, E)
        gfb, gsb = turned_f * cos + turned_s * sin, turned_s * cos - turned_f * sin
        if NORM != "none":
            fa, sa, fb, sb, rstd_J = normalise(fa, sa, fb, sb, eps, A, B, E, NORM)
        if grad_weight_ptr is not None:
            sum_fa, sum_sa = sum_fa + gfa * fa, sum_sa + gsa * sa
            sum_fb, sum_sb = sum_fb + gfb * fb, sum_sb + gsb * sb
        if grad_bias_ptr is not None:
            bias_fa, bias_sa = bias_fa + gfa, bias_sa + gsa
            bias_fb, bias_sb = bias_fb + gfb, bias_sb + gsb
        gfa, gsa, gfb, gsb = gfa * wfa, gsa * wsa, gfb * wfb, gsb * wsb
        if NORM != "none":
            gfa, gsa, gfb, gsb = normalise_backward(
                fa, sa, fb, sb, rstd_J, gfa, gsa, gfb, gsb, A, B, E, NORM
            )
        out_J = grad_qkv_ptr + (token * (H + 2 * G) + first_head + head_J) * E
        store_pairs(out_J, keep_J, gfa, gsa, 0, A, E, INTERLEAVED)
        store_pairs(out_J, keep_J, gfb, gsb, A, B, E, INTERLEAVED)
    part_J = (tl.program_id(0).to(tl.int64) * (H + G) + weight_J) * E
    if grad_weight_ptr is not None:
        store_pairs(grad_weight_ptr + part_J, head_J < heads, sum_fa, sum_sa, 0, A, E, INTERLEAVED)
        store_pairs(grad_weight_ptr + part_J, head_J < heads, sum_fb, sum_sb, A, B, E, INTERLEAVED)
    if grad_bias_ptr is not None:
        store_pairs(grad_bias_ptr + part_J, head_J < heads, bias_fa, bias_sa, 0, A, E, INTERLEAVED)
        store_pairs(grad_bias_ptr + part_J, head_J < heads, bias_fb, bias_sb, A, B, E, INTERLEAVED)


def _constants(
    num_heads: int, num_keys: int, head_dim: int, norm: str, interleaved: bool
) -> dict[str, Any]:
    """32 values to a lane in the larger piece."""
    a, b = two_pieces(head_dim // 2, smallest=2)
    heads = triton.next_power_of_2(max(num_heads, num_keys))
    return {
        "H": num_heads,
        "G": num_keys,
        "E": head_dim,
        "HEADS": heads,
        "A": a,
        "B": b,
        "NORM": norm,
        "INTERLEAVED": interleaved,
        "num_warps": max(1, min(8, heads * 2 * a // 1024)),
    }


def _warps_of_backward(dtype: torch.dtype, has_sums: bool) -> int:
    """How many times the forward's warps keep everything in registers, in Triton 3.6 and 3.9."""
    if dtype == torch.float32:
        return 8 if has_sums else 2
    return 2 if has_sums else 1


def _contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    return [t if t is None else t.contiguous() for t in tensors]


def qk_norm_rope(
    qkv_TXE: Tensor,
    cos_PE2: Tensor,
    sin_PE2: Tensor,
    row_T: Tensor,
    num_heads: int,
    norm: str,
    eps: float,
    weight_JE: Tensor | None,
    bias_JE: Tensor | None,
    interleaved: bool,
) -> tuple[Tensor, Tensor]:
    """Queries [T, H, E] and keys [T, G, E], normalised and rotated."""
    check_dtype("qk_norm_rope", qkv_TXE, weight_JE, bias_JE, cos_PE2)
    if norm not in NORMS:
        raise ValueError(unknown_norm(norm))
    num_tokens, _, head_dim = qkv_TXE.shape
    num_keys = key_heads(qkv_TXE, num_heads)
    qkv_TXE = unit_stride(qkv_TXE)
    q_THE, k_TGE = (
        torch.empty(num_tokens, heads, head_dim, dtype=qkv_TXE.dtype, device=qkv_TXE.device)
        for heads in (num_heads, num_keys)
    )
    strides = qkv_TXE.stride()[:2]
    unit = stride_unit(*strides)
    launch(
        _forward,
        (num_tokens, 2),
        qkv_TXE,
        *_contiguous(cos_PE2, sin_PE2, row_T, weight_JE, bias_JE),
        q_THE,
        k_TGE,
        *(stride // unit for stride in strides),
        eps,
        UNIT=unit,
        **_constants(num_heads, num_keys, head_dim, norm, interleaved),
    )
    return q_THE, k_TGE


def qk_norm_rope_backward(
    qkv_TXE: Tensor,
    grad_q_THE: Tensor,
    grad_k_TGE: Tensor,
    grad_v_TGE: Tensor | None,
    cos_PE2: Tensor,
    sin_PE2: Tensor,
    row_T: Tensor,
    norm: str,
    eps: float,
    weight_JE: Tensor | None,
    bias_JE: Tensor | None,
    interleaved: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients of the projection (the values' part is `grad_v`, or zeros), weight and bias."""
    num_tokens, num_heads, head_dim = grad_q_THE.shape
    num_keys = grad_k_TGE.shape[1]
    qkv_TXE, grad_q_THE, grad_k_TGE = map(unit_stride, (qkv_TXE, grad_q_THE, grad_k_TGE))
    grad_TXE = torch.empty(qkv_TXE.shape, dtype=qkv_TXE.dtype, device=qkv_TXE.device)
    values = grad_TXE[:, num_heads + num_keys :]
    values.zero_() if grad_v_TGE is None else values.copy_(grad_v_TGE)
    constants = _constants(num_heads, num_keys, head_dim, norm, interleaved)
    has_sums = weight_JE is not None or bias_JE is not None
    tokens = _TOKENS_PER_SUM if has_sums else 1
    constants["num_warps"] *= _warps_of_backward(qkv_TXE.dtype, has_sums)
    programs = triton.cdiv(num_tokens, tokens)
    shape = (programs, num_heads + num_keys, head_dim)
    sums = [
        None if t is None else torch.empty(shape, dtype=torch.float32, device=qkv_TXE.device)
        for t in (weight_JE, bias_JE)
    ]
    strides = [s for t in (qkv_TXE, grad_q_THE, grad_k_TGE) for s in t.stride()[:2]]
    unit = stride_unit(*strides)
    launch(
        _backward,
        (programs, 2),
        qkv_TXE,
        grad_q_THE,
        grad_k_TGE,
        *_contiguous(cos_PE2, sin_PE2, row_T, weight_JE),
        grad_TXE,
        *sums,
        num_tokens,
        *(stride // unit for stride in strides),
        eps,
        UNIT=unit,
        TOKENS=tokens,
        **constants,
    )
    grad_weight, grad_bias = (None if s is None else s.sum(0) for s in sums)
    return grad_TXE, grad_weight, grad_bias
