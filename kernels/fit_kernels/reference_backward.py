"""Gradients of the operators in plain PyTorch, as the fused kernels compute them.

What the registered operators run where no Triton kernel can; tested against autograd of
`fit_kernels.reference`. Everything is computed in fp32 or wider.

Dimension key: as in `fit_kernels.reference`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fit_kernels.reference import key_heads


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _statistics(x: Tensor, eps: float, norm: str) -> tuple[Tensor, Tensor]:
    """Mean and reciprocal deviation over the last dim, kept as a dim of one."""
    if norm == "none":
        return torch.zeros_like(x[..., :1]), torch.ones_like(x[..., :1])
    mean = x.mean(-1, keepdim=True) if norm == "layer" else torch.zeros_like(x[..., :1])
    return mean, ((x - mean).square().mean(-1, keepdim=True) + eps).rsqrt()


def _norm_backward(xhat: Tensor, rstd: Tensor, grad: Tensor, norm: str) -> Tensor:
    """From normalised values and their gradient to the gradient of what was normalised."""
    if norm == "none":
        return grad
    out = grad - xhat * (grad * xhat).mean(-1, keepdim=True)
    if norm == "layer":
        out = out - grad.mean(-1, keepdim=True)
    return out * rstd


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
    """See `fit_kernels.fused.layer_norm_modulate.norm_modulate_backward`."""
    x = _wide(x_TD)
    mean, rstd = _statistics(x, eps, norm)
    scaled = _wide(grad_TD) * (1.0 + _wide(scale_RD)[row_T])
    grad_x = _norm_backward((x - mean) * rstd, rstd, scaled, norm)
    if grad_sum_TD is not None:
        grad_x = grad_x + grad_sum_TD
    grad_y = None if gate_RD is None else (grad_x * gate_RD[row_T]).to(x_TD.dtype)
    return grad_x.to(x_TD.dtype), grad_y, mean[:, 0], rstd[:, 0]


def row_sums(
    grad_TD: Tensor,
    other_TD: Tensor,
    mean_T: Tensor | None,
    rstd_T: Tensor | None,
    row_T: Tensor,
    num_rows: int,
) -> tuple[Tensor, Tensor]:
    """See `fit_kernels.fused.row_sums.row_sums`."""
    grad, other = _wide(grad_TD), _wide(other_TD)
    if mean_T is not None and rstd_T is not None:
        other = (other - mean_T[:, None]) * rstd_T[:, None]
    zeros = grad.new_zeros(num_rows, grad.shape[1])
    return zeros.index_add(0, row_T, grad), zeros.index_add(0, row_T, grad * other)


def swiglu_backward(gate_up_T2F: Tensor, grad_TF: Tensor) -> Tensor:
    """See `fit_kernels.fused.swiglu.swiglu_backward`."""
    gate, up = _wide(gate_up_T2F).chunk(2, dim=-1)
    grad, open_ = _wide(grad_TF), gate.sigmoid()
    parts = (grad * up * open_ * (1.0 + gate * (1.0 - open_)), grad * gate * open_)
    return torch.cat(parts, dim=-1).to(gate_up_T2F.dtype)


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
    """See `fit_kernels.fused.qk_norm_rope.qk_norm_rope_backward`."""
    num_keys = key_heads(qkv_TXE, grad_q_THE.shape[1])
    x = _wide(qkv_TXE[:, : qkv_TXE.shape[1] - num_keys])
    turned = _wide(torch.cat((grad_q_THE, grad_k_TGE), dim=1))
    cos, sin = cos_PE2[row_T][:, None], sin_PE2[row_T][:, None]
    if interleaved:
        first, second = turned.unflatten(-1, (-1, 2)).unbind(-1)
        pairs = (first * cos + second * sin, second * cos - first * sin)
        grad = torch.stack(pairs, dim=-1).flatten(-2)
    else:
        first, second = turned.chunk(2, dim=-1)
        grad = torch.cat((first * cos + second * sin, second * cos - first * sin), dim=-1)
    mean, rstd = _statistics(x, eps, norm)
    xhat = (x - mean) * rstd
    grad_weight = None if weight_JE is None else (grad * xhat).sum(0)
    grad_bias = None if bias_JE is None else grad.sum(0)
    if weight_JE is not None:
        grad = grad * weight_JE
    grad_qk = _norm_backward(xhat, rstd, grad, norm).to(qkv_TXE.dtype)
    values = qkv_TXE[:, -num_keys:]
    grad_v = torch.zeros_like(values) if grad_v_TGE is None else grad_v_TGE
    return torch.cat((grad_qk, grad_v), dim=1), grad_weight, grad_bias


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
    """See `fit_kernels.fused.guided_step.guided_step_backward`."""
    a, b, c, d, e, f, g, scale = rows_S8[sequence_Ts][:, :, None].unbind(1)
    grad_x, grad_memory = grad_x_next_TsK, grad_memory_next_TsK
    grad = b * grad_x + f * grad_memory
    two = (conditional_Ts != unconditional_Ts)[:, None]
    guided = torch.arange(grad.shape[1], device=grad.device) < guided_channels
    share = torch.where(two & guided, scale, 1.0)
    grad_velocity = torch.zeros(velocity_TK.shape, dtype=grad.dtype, device=grad.device)
    grad_velocity.index_add_(0, conditional_Ts, share * grad)
    grad_velocity.index_add_(0, unconditional_Ts, (1.0 - share) * grad)
    return (
        a * grad_x + e * grad_memory,
        grad_velocity.to(velocity_TK.dtype),
        c * grad_x + g * grad_memory,
        d * grad_x if with_noise else None,
    )
