"""Norm and adaLN shift/scale in one pass, and the gated residual before them in the same pass.

One program handles whole rows: a row is read once, its statistics never leave the registers. A row
of D values is two power-of-two pieces, A and B, so that no lane idles at the widths models have.
Both operators share the kernels, for the residual only changes where the row comes from and where
its gradient goes on to.

Dimension key: T packed tokens, R modulation rows, D width.
"""

# pyright: reportArgumentType=false, reportOperatorIssue=false, reportPossiblyUnboundVariable=false
# Kernels are written in Triton's language; a type checker takes them for Python.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fit_kernels.launch import check_dtype, interpreting, launch, two_pieces, unit_stride

_VALUES_PER_LANE = 32


@triton.jit
def _columns(base, COUNT: tl.constexpr, D: tl.constexpr, keep_N):
    """Columns of a piece, and which of the tile's values exist."""
    cols = base + tl.arange(0, COUNT)
    if base + COUNT <= D:
        return cols, keep_N[:, None]
    else:
        return cols, keep_N[:, None] & (cols < D)[None, :]


@triton.jit
def _load(pointer, row_N, stride, cols, keep):
    """A tile of rows, fp32; zeros where nothing is."""
    offsets = row_N.to(tl.int64)[:, None] * stride + cols[None, :]
    return tl.load(pointer + offsets, mask=keep, other=0.0).to(tl.float32)


@triton.jit
def _store(pointer, row_N, stride, cols, keep, value):
    offsets = row_N.to(tl.int64)[:, None] * stride + cols[None, :]
    tl.store(pointer + offsets, value.to(pointer.dtype.element_ty), mask=keep)


@triton.jit
def _statistics(a, b, in_a, in_b, eps, D: tl.constexpr, SUBTRACT_MEAN: tl.constexpr):
    """Mean (0 for RMSNorm) and reciprocal deviation of each row; variance in a second pass."""
    if SUBTRACT_MEAN:
        mean_N = (tl.sum(a, 1) + tl.sum(b, 1)) / D
    else:
        mean_N = tl.sum(a, 1) * 0.0
    a = tl.where(in_a, a - mean_N[:, None], 0.0)
    b = tl.where(in_b, b - mean_N[:, None], 0.0)
    variance_N = (tl.sum(a * a, 1) + tl.sum(b * b, 1)) / D
    return mean_N, 1.0 / tl.sqrt(variance_N + eps)


@triton.jit(do_not_specialize=["num_tokens"])
def _forward(
    x_ptr,  # [T, D] the residual stream
    y_ptr,  # [T, D] what is added to it through the gate, or None
    gate_ptr,  # [R, D] or None
    shift_ptr,  # [R, D] or None
    scale_ptr,  # [R, D]
    row_ptr,  # int64 [T]
    sum_ptr,  # [T, D] out: x + gate y, or None
    out_ptr,  # [T, D] out
    num_tokens,
    x_stride,
    y_stride,
    gate_stride,
    shift_stride,
    scale_stride,
    eps,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    A: tl.constexpr,
    B: tl.constexpr,
    SUBTRACT_MEAN: tl.constexpr,
):
    token_N = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    keep_N = token_N < num_tokens
    cols_a, in_a = _columns(0, A, D, keep_N)
    cols_b, in_b = _columns(A, B, D, keep_N)
    row_N = tl.load(row_ptr + token_N, mask=keep_N, other=0)
    a = _load(x_ptr, token_N, x_stride, cols_a, in_a)
    b = _load(x_ptr, token_N, x_stride, cols_b, in_b)
    if y_ptr is not None:
        a += _load(gate_ptr, row_N, gate_stride, cols_a, in_a) * _load(
            y_ptr, token_N, y_stride, cols_a, in_a
        )
        b += _load(gate_ptr, row_N, gate_stride, cols_b, in_b) * _load(
            y_ptr, token_N, y_stride, cols_b, in_b
        )
        _store(sum_ptr, token_N, D, cols_a, in_a, a)
        _store(sum_ptr, token_N, D, cols_b, in_b, b)
        # The norm is of what is stored, so that a backward that reads it back agrees.
        a = a.to(sum_ptr.dtype.element_ty).to(tl.float32)
        b = b.to(sum_ptr.dtype.element_ty).to(tl.float32)
    mean_N, rstd_N = _statistics(a, b, in_a, in_b, eps, D, SUBTRACT_MEAN)
    a = (a - mean_N[:, None]) * rstd_N[:, None]
    b = (b - mean_N[:, None]) * rstd_N[:, None]
    a *= 1.0 + _load(scale_ptr, row_N, scale_stride, cols_a, in_a)
    b *= 1.0 + _load(scale_ptr, row_N, scale_stride, cols_b, in_b)
    if shift_ptr is not None:
        a += _load(shift_ptr, row_N, shift_stride, cols_a, in_a)
        b += _load(shift_ptr, row_N, shift_stride, cols_b, in_b)
    _store(out_ptr, token_N, D, cols_a, in_a, a)
    _store(out_ptr, token_N, D, cols_b, in_b, b)


@triton.jit(do_not_specialize=["num_tokens"])
def _backward(
    x_ptr,  # [T, D] what was normalised
    grad_ptr,  # [T, D] gradient of the modulated output
    grad_sum_ptr,  # [T, D] gradient of x + gate y from elsewhere, or None
    gate_ptr,  # [R, D] or None
    scale_ptr,  # [R, D]
    row_ptr,  # int64 [T]
    grad_x_ptr,  # [T, D] out
    grad_y_ptr,  # [T, D] out, or None
    mean_ptr,  # fp32 [T] out
    rstd_ptr,  # fp32 [T] out
    num_tokens,
    x_stride,
    grad_stride,
    grad_sum_stride,
    gate_stride,
    scale_stride,
    eps,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    A: tl.constexpr,
    B: tl.constexpr,
    SUBTRACT_MEAN: tl.constexpr,
):
    token_N = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    keep_N = token_N < num_tokens
    cols_a, in_a = _columns(0, A, D, keep_N)
    cols_b, in_b = _columns(A, B, D, keep_N)
    row_N = tl.load(row_ptr + token_N, mask=keep_N, other=0)
    a = _load(x_ptr, token_N, x_stride, cols_a, in_a)
    b = _load(x_ptr, token_N, x_stride, cols_b, in_b)
    mean_N, rstd_N = _statistics(a, b, in_a, in_b, eps, D, SUBTRACT_MEAN)
    tl.store(mean_ptr + token_N, mean_N, mask=keep_N)
    tl.store(rstd_ptr + token_N, rstd_N, mask=keep_N)
    a = tl.where(in_a, (a - mean_N[:, None]) * rstd_N[:, None], 0.0)
    b = tl.where(in_b, (b - mean_N[:, None]) * rstd_N[:, None], 0.0)
    grad_a = _load(grad_ptr, token_N, grad_stride, cols_a, in_a)
    grad_b = _load(grad_ptr, token_N, grad_stride, cols_b, in_b)
    grad_a *= 1.0 + _load(scale_ptr, row_N, scale_stride, cols_a, in_a)
    grad_b *= 1.0 + _load(scale_ptr, row_N, scale_stride, cols_b, in_b)
    along_N = (tl.sum(grad_a * a, 1) + tl.sum(grad_b * b, 1)) / D
    grad_a_out = grad_a - a * along_N[:, None]
    grad_b_out = grad_b - b * along_N[:, None]
    if SUBTRACT_MEAN:
        common_N = (tl.sum(grad_a, 1) + tl.sum(grad_b, 1)) / D
        grad_a_out -= common_N[:, None]
        grad_b_out -= common_N[:, None]
    grad_a_out *= rstd_N[:, None]
    grad_b_out *= rstd_N[:, None]
    if grad_sum_ptr is not None:
        grad_a_out += _load(grad_sum_ptr, token_N, grad_sum_stride, cols_a, in_a)
        grad_b_out += _load(grad_sum_ptr, token_N, grad_sum_stride, cols_b, in_b)
    _store(grad_x_ptr, token_N, D, cols_a, in_a, grad_a_out)
    _store(grad_x_ptr, token_N, D, cols_b, in_b, grad_b_out)
    if grad_y_ptr is not None:
        grad_a_out *= _load(gate_ptr, row_N, gate_stride, cols_a, in_a)
        grad_b_out *= _load(gate_ptr, row_N, gate_stride, cols_b, in_b)
        _store(grad_y_ptr, token_N, D, cols_a, in_a, grad_a_out)
        _store(grad_y_ptr, token_N, D, cols_b, in_b, grad_b_out)


def _subtracts_mean(norm: str) -> bool:
    if norm not in ("layer", "rms"):
        raise ValueError(f"norm {norm!r} is not fused with a modulation; known: layer, rms")
    return norm == "layer"


def _tile(width: int) -> dict[str, int]:
    """One warp holds 1024 values of a row: its sums need no shared memory."""
    a, b = two_pieces(width, smallest=16)
    if interpreting():
        return {"A": a, "B": b, "ROWS": 32, "num_warps": 1}
    num_warps = max(1, min(8, a // (32 * _VALUES_PER_LANE)))
    return {"A": a, "B": b, "ROWS": max(1, 512 // a), "num_warps": num_warps}


def layer_norm_modulate(
    x_TD: Tensor, shift_RD: Tensor | None, scale_RD: Tensor, row_T: Tensor, eps: float, norm: str
) -> Tensor:
    """`norm(x) * (1 + scale[row]) + shift[row]`, [T, D]."""
    check_dtype("layer_norm_modulate", x_TD, shift_RD, scale_RD)
    out_TD = torch.empty(x_TD.shape, dtype=x_TD.dtype, device=x_TD.device)
    _launch_forward(x_TD, None, None, shift_RD, scale_RD, row_T, None, out_TD, eps, norm)
    return out_TD


def gated_residual_layer_norm_modulate(
    x_TD: Tensor,
    y_TD: Tensor,
    gate_RD: Tensor,
    shift_RD: Tensor | None,
    scale_RD: Tensor,
    row_T: Tensor,
    eps: float,
    norm: str,
) -> tuple[Tensor, Tensor]:
    """`s = x + gate[row] * y`, and `norm(s) * (1 + scale[row]) + shift[row]`, each [T, D]."""
    check_dtype("gated_residual_layer_norm_modulate", x_TD, y_TD, gate_RD, shift_RD, scale_RD)
    sum_TD, out_TD = (
        torch.empty(x_TD.shape, dtype=x_TD.dtype, device=x_TD.device) for _ in range(2)
    )
    _launch_forward(x_TD, y_TD, gate_RD, shift_RD, scale_RD, row_T, sum_TD, out_TD, eps, norm)
    return sum_TD, out_TD


def _launch_forward(
    x_TD: Tensor,
    y_TD: Tensor | None,
    gate_RD: Tensor | None,
    shift_RD: Tensor | None,
    scale_RD: Tensor,
    row_T: Tensor,
    sum_TD: Tensor | None,
    out_TD: Tensor,
    eps: float,
    norm: str,
) -> None:
    num_tokens, width = x_TD.shape
    tile = _tile(width)
    x_TD, scale_RD = unit_stride(x_TD), unit_stride(scale_RD)
    y_TD, gate_RD, shift_RD = (
        t if t is None else unit_stride(t) for t in (y_TD, gate_RD, shift_RD)
    )
    launch(
        _forward,
        (triton.cdiv(num_tokens, tile["ROWS"]),),
        x_TD,
        y_TD,
        gate_RD,
        shift_RD,
        scale_RD,
        row_T,
        sum_TD,
        out_TD,
        num_tokens,
        *(0 if t is None else t.stride(0) for t in (x_TD, y_TD, gate_RD, shift_RD, scale_RD)),
        eps,
        D=width,
        SUBTRACT_MEAN=_subtracts_mean(norm),
        **tile,
    )


def norm_modulate_backward(
    x_TD: Tensor,
    grad_TD: Tensor,
    grad_sum_TD: Tensor | None,
    gate_RD: Tensor | None,
    scale_RD: Tensor,
    row_T: Tensor,
    eps: float,
    norm: str,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Gradients of both operators on the token side; the rows' are `fused.row_sums`'s business.

    Args:
        x_TD: what was normalised: the input, or the gated sum.
        grad_TD: gradient of the modulated output.
        grad_sum_TD: gradient of the gated sum from its other uses; None without a gate.
        gate_RD: None without a gate.
        scale_RD, row_T, eps, norm: as in the forward.

    Returns:
        gradient of x, gradient of y (None without a gate), mean and reciprocal deviation [T].
    """
    num_tokens, width = x_TD.shape
    tile = _tile(width)
    x_TD, grad_TD, scale_RD = unit_stride(x_TD), unit_stride(grad_TD), unit_stride(scale_RD)
    gate_RD, grad_sum_TD = (t if t is None else unit_stride(t) for t in (gate_RD, grad_sum_TD))
    grad_x_TD = torch.empty(x_TD.shape, dtype=x_TD.dtype, device=x_TD.device)
    grad_y_TD = None if gate_RD is None else torch.empty_like(grad_x_TD)
    mean_T, rstd_T = (
        torch.empty(num_tokens, dtype=torch.float32, device=x_TD.device) for _ in range(2)
    )
    launch(
        _backward,
        (triton.cdiv(num_tokens, tile["ROWS"]),),
        x_TD,
        grad_TD,
        grad_sum_TD,
        gate_RD,
        scale_RD,
        row_T,
        grad_x_TD,
        grad_y_TD,
        mean_T,
        rstd_T,
        num_tokens,
        *(0 if t is None else t.stride(0) for t in (x_TD, grad_TD, grad_sum_TD, gate_RD, scale_RD)),
        eps,
        D=width,
        SUBTRACT_MEAN=_subtracts_mean(norm),
        **tile,
    )
    return grad_x_TD, grad_y_TD, mean_T, rstd_T
