"""SiLU of one half of a projection times its other half, read and written once.

Dimension key: T packed tokens, F MLP width.
"""

# pyright: reportArgumentType=false, reportOperatorIssue=false, reportPossiblyUnboundVariable=false
# Kernels are written in Triton's language; a type checker takes them for Python.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fit_kernels.launch import check_dtype, interpreting, launch, stride_unit, unit_stride


@triton.jit(do_not_specialize=["num_tokens"])
def _forward(
    gate_up_ptr,  # [T, 2F]
    out_ptr,  # [T, F]
    num_tokens,
    stride,  # in units of UNIT, as the other one
    F: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_F: tl.constexpr,
    UNIT: tl.constexpr,
):
    token_N = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    cols = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    keep = (token_N < num_tokens)[:, None] & (cols < F)[None, :]
    source = gate_up_ptr + token_N[:, None] * (stride * UNIT) + cols[None, :]
    gate = tl.load(source, mask=keep, other=0.0).to(tl.float32)
    up = tl.load(source + F, mask=keep, other=0.0).to(tl.float32)
    out = gate * tl.sigmoid(gate) * up
    target = out_ptr + token_N[:, None] * F + cols[None, :]
    tl.store(target, out.to(out_ptr.dtype.element_ty), mask=keep)


@triton.jit(do_not_specialize=["num_tokens"])
def _backward(
    gate_up_ptr,  # [T, 2F]
    grad_ptr,  # [T, F]
    grad_gate_up_ptr,  # [T, 2F] out
    num_tokens,
    stride,  # in units of UNIT, as the other one
    grad_stride,
    F: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_F: tl.constexpr,
    UNIT: tl.constexpr,
):
    token_N = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    cols = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    keep = (token_N < num_tokens)[:, None] & (cols < F)[None, :]
    source = gate_up_ptr + token_N[:, None] * (stride * UNIT) + cols[None, :]
    gate = tl.load(source, mask=keep, other=0.0).to(tl.float32)
    up = tl.load(source + F, mask=keep, other=0.0).to(tl.float32)
    grad = tl.load(
        grad_ptr + token_N[:, None] * (grad_stride * UNIT) + cols[None, :], mask=keep, other=0.0
    ).to(tl.float32)
    open_ = tl.sigmoid(gate)
    grad_gate = grad * up * open_ * (1.0 + gate * (1.0 - open_))
    grad_up = grad * gate * open_
    target = grad_gate_up_ptr + token_N[:, None] * (2 * F) + cols[None, :]
    dtype = grad_gate_up_ptr.dtype.element_ty
    tl.store(target, grad_gate.to(dtype), mask=keep)
    tl.store(target + F, grad_up.to(dtype), mask=keep)


def _tile(width: int) -> dict[str, int]:
    """32 values of each half to a lane: four 16-byte loads in flight from each in bf16."""
    block = max(16, min(1024, triton.next_power_of_2(width)))
    rows = 64 if interpreting() else max(1, 4096 // block)
    return {"ROWS": rows, "BLOCK_F": block, "num_warps": 4}


def swiglu(gate_up_T2F: Tensor) -> Tensor:
    """`SiLU(gate) * up`, [T, F]."""
    check_dtype("swiglu", gate_up_T2F)
    num_tokens, width = gate_up_T2F.shape[0], gate_up_T2F.shape[1] // 2
    gate_up_T2F = unit_stride(gate_up_T2F)
    out_TF = torch.empty(num_tokens, width, dtype=gate_up_T2F.dtype, device=gate_up_T2F.device)
    tile = _tile(width)
    grid = (triton.cdiv(num_tokens, tile["ROWS"]), triton.cdiv(width, tile["BLOCK_F"]))
    unit = stride_unit(gate_up_T2F.stride(0))
    launch(
        _forward,
        grid,
        gate_up_T2F,
        out_TF,
        num_tokens,
        gate_up_T2F.stride(0) // unit,
        F=width,
        UNIT=unit,
        **tile,
    )
    return out_TF


def swiglu_backward(gate_up_T2F: Tensor, grad_TF: Tensor) -> Tensor:
    """Gradient of the projection, [T, 2F]."""
    num_tokens, width = grad_TF.shape
    gate_up_T2F, grad_TF = unit_stride(gate_up_T2F), unit_stride(grad_TF)
    grad_T2F = torch.empty(gate_up_T2F.shape, dtype=gate_up_T2F.dtype, device=gate_up_T2F.device)
    tile = _tile(width)
    grid = (triton.cdiv(num_tokens, tile["ROWS"]), triton.cdiv(width, tile["BLOCK_F"]))
    unit = stride_unit(gate_up_T2F.stride(0), grad_TF.stride(0))
    launch(
        _backward,
        grid,
        gate_up_T2F,
        grad_TF,
        grad_T2F,
        num_tokens,
        gate_up_T2F.stride(0) // unit,
        grad_TF.stride(0) // unit,
        F=width,
        UNIT=unit,
        **tile,
    )
    return grad_T2F
