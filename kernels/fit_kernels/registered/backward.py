"""The gradients of the operators as operators of their own, so that a compiler sees them too.

No `annotations` import from the future here: torch reads the signatures.
"""

import torch
from torch import Tensor
from torch.library import custom_op

from fit_kernels import reference_backward
from fit_kernels.registered.forward import runs_fused


@custom_op("fit_kernels::norm_modulate_backward", mutates_args=())
def norm_modulate_backward(
    x: Tensor, grad: Tensor, scale: Tensor, row: Tensor, eps: float, norm: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of x; and mean and reciprocal deviation [T]."""
    backward = reference_backward.norm_modulate_backward
    if runs_fused(x):
        from fit_kernels.fused import layer_norm_modulate as fused

        backward = fused.norm_modulate_backward
    grad_x, _, mean, rstd = backward(x, grad, None, None, scale, row, eps, norm)
    return grad_x, mean.contiguous(), rstd.contiguous()


@norm_modulate_backward.register_fake
def _(x, grad, scale, row, eps, norm):
    return x.new_empty(x.shape), *_fake_statistics(x)


@custom_op("fit_kernels::gated_norm_modulate_backward", mutates_args=())
def gated_norm_modulate_backward(
    total: Tensor,
    grad: Tensor,
    grad_total: Tensor,
    gate: Tensor,
    scale: Tensor,
    row: Tensor,
    eps: float,
    norm: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x and y; and mean and reciprocal deviation [T] of the sum."""
    backward = reference_backward.norm_modulate_backward
    if runs_fused(total):
        from fit_kernels.fused import layer_norm_modulate as fused

        backward = fused.norm_modulate_backward
    grad_x, grad_y, mean, rstd = backward(total, grad, grad_total, gate, scale, row, eps, norm)
    assert grad_y is not None
    return grad_x, grad_y, mean.contiguous(), rstd.contiguous()


@gated_norm_modulate_backward.register_fake
def _(total, grad, grad_total, gate, scale, row, eps, norm):
    return total.new_empty(total.shape), total.new_empty(total.shape), *_fake_statistics(total)


def _fake_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(x.dtype, torch.float32)
    return x.new_empty(x.shape[0], dtype=wide), x.new_empty(x.shape[0], dtype=wide)


@custom_op("fit_kernels::row_sums", mutates_args=())
def row_sums(
    grad: Tensor,
    other: Tensor,
    mean: Tensor | None,
    rstd: Tensor | None,
    row: Tensor,
    num_rows: int,
) -> tuple[Tensor, Tensor]:
    """Sums over each row's tokens of grad, and of grad times (normalised) other: [R, D]."""
    sums = reference_backward.row_sums
    if runs_fused(grad):
        from fit_kernels.fused import row_sums as fused

        sums = fused.row_sums
    return sums(grad, other, mean, rstd, row, num_rows)


@row_sums.register_fake
def _(grad, other, mean, rstd, row, num_rows):
    wide = torch.promote_types(grad.dtype, torch.float32)
    shape = (num_rows, grad.shape[1])
    return grad.new_empty(shape, dtype=wide), grad.new_empty(shape, dtype=wide)


@custom_op("fit_kernels::swiglu_backward", mutates_args=())
def swiglu_backward(gate_up: Tensor, grad: Tensor) -> Tensor:
    """Gradient of the projection."""
    if runs_fused(gate_up):
        from fit_kernels.fused import swiglu as fused

        return fused.swiglu_backward(gate_up, grad)
    return reference_backward.swiglu_backward(gate_up, grad)


@swiglu_backward.register_fake
def _(gate_up, grad):
    return gate_up.new_empty(gate_up.shape)


@custom_op("fit_kernels::qk_norm_rope_backward", mutates_args=())
def qk_norm_rope_backward(
    qkv: Tensor,
    grad_q: Tensor,
    grad_k: Tensor,
    grad_v: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    row: Tensor,
    norm: str,
    eps: float,
    weight: Tensor | None,
    bias: Tensor | None,
    interleaved: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the projection, and of weight and bias (empty where there is none)."""
    backward = reference_backward.qk_norm_rope_backward
    if runs_fused(qkv):
        from fit_kernels.fused import qk_norm_rope as fused

        backward = fused.qk_norm_rope_backward
    grad, grad_weight, grad_bias = backward(
        qkv, grad_q, grad_k, grad_v, cos, sin, row, norm, eps, weight, bias, interleaved
    )
    empty = grad.new_empty(0)
    return (
        grad,
        empty if grad_weight is None else grad_weight,
        grad.new_empty(0) if grad_bias is None else grad_bias,
    )


@qk_norm_rope_backward.register_fake
def _(qkv, grad_q, grad_k, grad_v, cos, sin, row, norm, eps, weight, bias, interleaved):
    wide = torch.promote_types(qkv.dtype, torch.float32)
    sums = (
        qkv.new_empty(0) if t is None else qkv.new_empty(t.shape, dtype=wide)
        for t in (weight, bias)
    )
    return qkv.new_empty(qkv.shape), *sums


@custom_op("fit_kernels::guided_step_backward", mutates_args=())
def guided_step_backward(
    grad_x_next: Tensor,
    grad_memory_next: Tensor,
    velocity: Tensor,
    conditional: Tensor,
    unconditional: Tensor,
    rows: Tensor,
    sequence: Tensor,
    guided_channels: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, velocity, memory and noise."""
    backward = reference_backward.guided_step_backward
    if runs_fused(grad_x_next):
        from fit_kernels.fused import guided_step as fused

        backward = fused.guided_step_backward
    grad_x, grad_velocity, grad_memory, grad_noise = backward(
        grad_x_next,
        grad_memory_next,
        velocity,
        conditional,
        unconditional,
        rows,
        sequence,
        guided_channels,
        True,
    )
    assert grad_noise is not None
    return grad_x, grad_velocity, grad_memory, grad_noise


@guided_step_backward.register_fake
def _(grad_x_next, grad_memory_next, velocity, conditional, unconditional, rows, sequence, guided):
    x = grad_x_next
    return (
        x.new_empty(x.shape),
        velocity.new_empty(velocity.shape),
        x.new_empty(x.shape),
        x.new_empty(x.shape),
    )
