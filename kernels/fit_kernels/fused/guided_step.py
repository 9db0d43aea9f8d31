"""Guidance over two branches and the sampler's update, in one pass over the latent tokens.

Every sequence has its own row of eight numbers: seven coefficients of its sampler's linear rule and
its guidance scale.

Dimension key: T packed tokens, Ts state tokens, S sequences, K channels of a token.
"""

# pyright: reportArgumentType=false, reportOperatorIssue=false, reportPossiblyUnboundVariable=false
# Kernels are written in Triton's language; a type checker takes them for Python.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fit_kernels.launch import interpreting, launch, unit_stride


@triton.jit
def _tile_of(ROWS: tl.constexpr, BLOCK_K: tl.constexpr, K: tl.constexpr, num_tokens):
    """Tokens and channels of this program, which of them exist, and offsets in a [Ts, K] tensor."""
    token_N = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    keep_N = token_N < num_tokens
    cols = tl.arange(0, BLOCK_K)
    keep = keep_N[:, None] & (cols < K)[None, :]
    return token_N, keep_N, cols, keep, token_N[:, None] * K + cols[None, :]


@triton.jit(do_not_specialize=["num_tokens", "guided_channels"])
def _forward(
    x_ptr,  # fp32 [Ts, K]
    velocity_ptr,  # [T, K]
    memory_ptr,  # fp32 [Ts, K]
    noise_ptr,  # fp32 [Ts, K] or None
    conditional_ptr,  # int64 [Ts]
    unconditional_ptr,  # int64 [Ts]
    rows_ptr,  # fp32 [S, 8]
    sequence_ptr,  # int64 [Ts]
    x_next_ptr,  # fp32 [Ts, K] out
    memory_next_ptr,  # fp32 [Ts, K] out
    num_tokens,
    velocity_stride,
    guided_channels,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    token_N, keep_N, cols, keep, at = _tile_of(ROWS, BLOCK_K, K, num_tokens)
    row = rows_ptr + tl.load(sequence_ptr + token_N, mask=keep_N, other=0)[:, None] * 8
    from_N = tl.load(conditional_ptr + token_N, mask=keep_N, other=0)
    null_N = tl.load(unconditional_ptr + token_N, mask=keep_N, other=0)
    velocity = tl.load(
        velocity_ptr + from_N[:, None] * velocity_stride + cols[None, :], mask=keep, other=0.0
    ).to(tl.float32)
    null = tl.load(
        velocity_ptr + null_N[:, None] * velocity_stride + cols[None, :], mask=keep, other=0.0
    ).to(tl.float32)
    # Sums of products are written as the chains of fused operations that they become: a compiler
    # may otherwise pick another chain where there is noise, and noise is there when anybody has it.
    guided = tl.fma(tl.load(row + 7), velocity - null, null)
    velocity = tl.where((cols < guided_channels)[None, :], guided, velocity)
    x = tl.load(x_ptr + at, mask=keep, other=0.0)
    memory = tl.load(memory_ptr + at, mask=keep, other=0.0)
    x_next = tl.fma(tl.load(row + 1), velocity, tl.load(row) * x)
    x_next = tl.fma(tl.load(row + 2), memory, x_next)
    if noise_ptr is not None:
        noise = tl.load(noise_ptr + at, mask=keep, other=0.0)
        x_next = tl.fma(tl.load(row + 3), noise, x_next)
    memory_next = tl.fma(tl.load(row + 5), velocity, tl.load(row + 4) * x)
    memory_next = tl.fma(tl.load(row + 6), memory, memory_next)
    tl.store(x_next_ptr + at, x_next, mask=keep)
    tl.store(memory_next_ptr + at, memory_next, mask=keep)


@triton.jit(do_not_specialize=["num_tokens", "guided_channels"])
def _backward(
    grad_x_next_ptr,  # fp32 [Ts, K]
    grad_memory_next_ptr,  # fp32 [Ts, K]
    conditional_ptr,  # int64 [Ts]
    unconditional_ptr,  # int64 [Ts]
    rows_ptr,  # fp32 [S, 8]
    sequence_ptr,  # int64 [Ts]
    grad_x_ptr,  # fp32 [Ts, K] out
    grad_velocity_ptr,  # [T, K] out, zeros where no state token reads
    grad_memory_ptr,  # fp32 [Ts, K] out
    grad_noise_ptr,  # fp32 [Ts, K] out, or None
    num_tokens,
    guided_channels,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    token_N, keep_N, cols, keep, at = _tile_of(ROWS, BLOCK_K, K, num_tokens)
    row = rows_ptr + tl.load(sequence_ptr + token_N, mask=keep_N, other=0)[:, None] * 8
    grad_x = tl.load(grad_x_next_ptr + at, mask=keep, other=0.0)
    grad_memory = tl.load(grad_memory_next_ptr + at, mask=keep, other=0.0)
    tl.store(grad_x_ptr + at, tl.load(row) * grad_x + tl.load(row + 4) * grad_memory, mask=keep)
    tl.store(
        grad_memory_ptr + at, tl.load(row + 2) * grad_x + tl.load(row + 6) * grad_memory, mask=keep
    )
    if grad_noise_ptr is not None:
        tl.store(grad_noise_ptr + at, tl.load(row + 3) * grad_x, mask=keep)
    grad = tl.load(row + 1) * grad_x + tl.load(row + 5) * grad_memory
    from_N = tl.load(conditional_ptr + token_N, mask=keep_N, other=0)
    null_N = tl.load(unconditional_ptr + token_N, mask=keep_N, other=0)
    two = (from_N != null_N)[:, None]
    share = tl.where((cols < guided_channels)[None, :] & two, tl.load(row + 7), 1.0)
    dtype = grad_velocity_ptr.dtype.element_ty
    # Every packed token is read by one state token at most, so these stores never meet.
    target = grad_velocity_ptr + cols[None, :]
    tl.store(target + from_N[:, None] * K, (share * grad).to(dtype), mask=keep)
    tl.store(target + null_N[:, None] * K, ((1.0 - share) * grad).to(dtype), mask=keep & two)


def _tile(channels: int) -> dict[str, int]:
    return {
        "K": channels,
        "ROWS": 256 if interpreting() else 128,
        "BLOCK_K": triton.next_power_of_2(channels),
        "num_warps": 4,
    }


def guided_step(
    x_TsK: Tensor,
    velocity_TK: Tensor,
    memory_TsK: Tensor,
    noise_TsK: Tensor | None,
    conditional_Ts: Tensor,
    unconditional_Ts: Tensor,
    rows_S8: Tensor,
    sequence_Ts: Tensor,
    guided_channels: int,
) -> tuple[Tensor, Tensor]:
    """x' and memory', fp32 [Ts, K].

    Raises:
        ValueError: state, memory, noise or rows are not fp32.
    """
    for name, tensor in (("x", x_TsK), ("memory", memory_TsK), ("noise", noise_TsK)):
        if tensor is not None and tensor.dtype != torch.float32:
            raise ValueError(f"guided_step: {name} is {tensor.dtype}; it must be float32")
    num_tokens, channels = x_TsK.shape
    velocity_TK = unit_stride(velocity_TK)
    x_next, memory_next = (
        torch.empty(x_TsK.shape, dtype=torch.float32, device=x_TsK.device) for _ in range(2)
    )
    tile = _tile(channels)
    launch(
        _forward,
        (triton.cdiv(num_tokens, tile["ROWS"]),),
        x_TsK.contiguous(),
        velocity_TK,
        memory_TsK.contiguous(),
        None if noise_TsK is None else noise_TsK.contiguous(),
        conditional_Ts,
        unconditional_Ts,
        rows_S8.contiguous(),
        sequence_Ts,
        x_next,
        memory_next,
        num_tokens,
        velocity_TK.stride(0),
        guided_channels,
        **tile,
    )
    return x_next, memory_next


def guided_step_backward(
    grad_x_next_TsK: Tensor,
    grad_memory_next_TsK: Tensor,
    velocity_TK: Tensor,
    conditional_Ts: Tensor,
    unconditional_Ts: Tensor,
    rows_S8: Tensor,
    sequence_Ts: Tensor,
    guided_channels: int,
    with_noise: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of x, velocity, memory and noise; `velocity_TK` gives shape and dtype only."""
    num_tokens, channels = grad_x_next_TsK.shape
    grad_x, grad_memory = (torch.empty_like(grad_x_next_TsK).contiguous() for _ in range(2))
    grad_noise = torch.empty_like(grad_x) if with_noise else None
    grad_velocity = torch.zeros(
        velocity_TK.shape, dtype=velocity_TK.dtype, device=velocity_TK.device
    )
    tile = _tile(channels)
    launch(
        _backward,
        (triton.cdiv(num_tokens, tile["ROWS"]),),
        grad_x_next_TsK.contiguous(),
        grad_memory_next_TsK.contiguous(),
        conditional_Ts,
        unconditional_Ts,
        rows_S8.contiguous(),
        sequence_Ts,
        grad_x,
        grad_velocity,
        grad_memory,
        grad_noise,
        num_tokens,
        guided_channels,
        **tile,
    )
    return grad_x, grad_velocity, grad_memory, grad_noise
