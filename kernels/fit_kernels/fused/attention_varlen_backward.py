"""Attention inside each sequence of a pack, backward: the same bits every time, without atomics.

Two launches (FlashAttention-2, arXiv:2307.08691, algorithm 2, with its two loops taken apart):
the gradient of queries, which leaves each row's delta, then those of keys and values. Both compute
the weights again from the log-sum-exp that the forward kept.

Dimension key: T packed tokens, S sequences, H query heads, G key and value heads, E head dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fit_kernels.fused.attention_key_gradient import attention_key_gradient_kernel
from fit_kernels.fused.attention_query_gradient import attention_query_gradient_kernel
from fit_kernels.fused.attention_tiles import Tiles, checked
from fit_kernels.launch import interpreting, launch, stride_unit, unit_stride


def query_tiles(head_dim: int, dtype: torch.dtype) -> Tiles:
    """Choose tiles for the gradient of queries; no spills, see `attention_varlen`."""
    if dtype == torch.float32:
        return Tiles(32, 32, 8, 1, widest=64, chunk=16)
    return Tiles(128, 32, 8, 3)


def key_tiles(head_dim: int, dtype: torch.dtype, share: int) -> Tiles:
    """Choose tiles for the gradients of keys and values; no spills, see `attention_varlen`.

    Two sums of [keys, E] stand in registers, so that few queries fit beside them.
    """
    if dtype == torch.float32:
        if interpreting():  # where a program's cost is its number of operations
            return Tiles(64, 64, 4, 1, widest=64, chunk=64)
        if share > 1:  # another loop, and eight bytes too many in the tiles below
            return Tiles(16, 32, 8, 1, widest=64, chunk=16)
        return Tiles(16, 16, 4, 1, widest=64, chunk=16)
    if head_dim <= 64:
        return Tiles(32, 128, 8, 3, widest=64)
    return Tiles(32 if head_dim <= 80 else 16, 128, 8, 2, widest=64)


def attention_varlen_backward(
    grad_out_THE: Tensor,
    q_THE: Tensor,
    k_TGE: Tensor,
    v_TGE: Tensor,
    out_THE: Tensor,
    lse_HT: Tensor,
    cu_seqlens: Tensor,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of queries [T, H, E], keys and values [T, G, E], contiguous.

    Args:
        grad_out_THE: gradient of the output, any strides.
        q_THE: as in the forward, and so with keys, values, `cu_seqlens` and `scale`.
        k_TGE: keys.
        v_TGE: values.
        out_THE: the forward's output.
        lse_HT: the forward's log-sum-exp.
        cu_seqlens: int32 [S + 1].
        scale: of the logits; `E ** -0.5` if None.

    Raises:
        ValueError: a dtype, head dim, number of heads or scale that the kernels do not take.
    """
    q_THE, k_TGE, v_TGE, scale = checked(q_THE, k_TGE, v_TGE, cu_seqlens, scale)
    grad_out_THE, out_THE = unit_stride(grad_out_THE), out_THE.contiguous()
    tokens, heads, head_dim = q_THE.shape
    key_heads, sequences = k_TGE.shape[1], cu_seqlens.shape[0] - 1
    grad_q_THE = torch.empty_like(q_THE, memory_format=torch.contiguous_format)
    grad_k_TGE = torch.empty_like(k_TGE, memory_format=torch.contiguous_format)
    grad_v_TGE = torch.empty_like(v_TGE, memory_format=torch.contiguous_format)
    delta_HT = torch.empty_like(lse_HT)
    given = (q_THE, k_TGE, v_TGE, grad_out_THE)
    strides = [x.stride(dim) for x in given for dim in (0, 1)]
    unit = stride_unit(*strides)
    strides = [stride // unit for stride in strides]
    shapes = {"HEADS": heads, "SHARE": heads // key_heads, "UNIT": unit}
    tiles = query_tiles(head_dim, q_THE.dtype)
    launch(
        attention_query_gradient_kernel,
        (tokens // tiles.block_m + sequences + 1, heads),
        *given, out_THE, lse_HT, delta_HT, grad_q_THE, cu_seqlens,
        scale, tokens, sequences, *strides, **shapes, **tiles.constants(head_dim),
        num_warps=tiles.num_warps, num_stages=tiles.num_stages,
    )  # fmt: skip
    tiles = key_tiles(head_dim, q_THE.dtype, heads // key_heads)
    launch(
        attention_key_gradient_kernel,
        (tokens // tiles.block_n + sequences + 1, key_heads),
        *given, lse_HT, delta_HT, grad_k_TGE, grad_v_TGE, cu_seqlens,
        scale, tokens, sequences, *strides, **shapes, **tiles.constants(head_dim),
        num_warps=tiles.num_warps, num_stages=tiles.num_stages,
    )  # fmt: skip
    return grad_q_THE, grad_k_TGE, grad_v_TGE
