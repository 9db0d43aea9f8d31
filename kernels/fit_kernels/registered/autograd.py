"""What the registered operators keep for their gradients, and how these become the arguments' own.

Sums over the tokens of modulation rows are computed only where somebody wants them.
"""

from typing import Any

import torch
from torch import Tensor

from fit_kernels.reference import key_heads
from fit_kernels.registered import forward
from fit_kernels.registered.backward import (
    gated_norm_modulate_backward,
    guided_step_backward,
    norm_modulate_backward,
    qk_norm_rope_backward,
    row_sums,
    swiglu_backward,
)


def _save_modulate(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, shift, scale, row, ctx.eps, ctx.norm = inputs
    ctx.save_for_backward(x, scale, row)
    ctx.shift_dtype = None if shift is None else shift.dtype


def _modulate_backward(ctx: Any, grad: Tensor) -> tuple:
    x, scale, row = ctx.saved_tensors
    grad_x, mean, rstd = norm_modulate_backward(x, grad, scale, row, ctx.eps, ctx.norm)
    grad_shift = grad_scale = None
    if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
        sums, products = row_sums(grad, x, mean, rstd, row, scale.shape[0])
        grad_shift = None if ctx.shift_dtype is None else sums.to(ctx.shift_dtype)
        grad_scale = products.to(scale.dtype)
    return grad_x, grad_shift, grad_scale, None, None, None


def _save_gated(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    _, y, gate, shift, scale, row, ctx.eps, ctx.norm = inputs
    ctx.save_for_backward(output[0], y, gate, scale, row)
    ctx.shift_dtype = None if shift is None else shift.dtype


def _gated_backward(ctx: Any, grad_total: Tensor, grad: Tensor) -> tuple:
    total, y, gate, scale, row = ctx.saved_tensors
    grad_x, grad_y, mean, rstd = gated_norm_modulate_backward(
        total, grad, grad_total, gate, scale, row, ctx.eps, ctx.norm
    )
    grad_gate = grad_shift = grad_scale = None
    if ctx.needs_input_grad[2]:
        _, products = row_sums(grad_x, y, None, None, row, gate.shape[0])
        grad_gate = products.to(gate.dtype)
    if ctx.needs_input_grad[3] or ctx.needs_input_grad[4]:
        sums, products = row_sums(grad, total, mean, rstd, row, scale.shape[0])
        grad_shift = None if ctx.shift_dtype is None else sums.to(ctx.shift_dtype)
        grad_scale = products.to(scale.dtype)
    return grad_x, grad_y, grad_gate, grad_shift, grad_scale, None, None, None


def _save_swiglu(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _swiglu_backward(ctx: Any, grad: Tensor) -> Tensor:
    return swiglu_backward(*ctx.saved_tensors, grad)


def _save_rotated(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    qkv, cos, sin, row, _, ctx.norm, ctx.eps, weight, bias, ctx.interleaved = inputs
    ctx.save_for_backward(qkv, cos, sin, row, weight, bias)


def _rotated_backward(
    ctx: Any, grad_q: Tensor, grad_k: Tensor, grad_v: Tensor | None = None
) -> tuple:
    qkv, cos, sin, row, weight, bias = ctx.saved_tensors
    grad, grad_weight, grad_bias = qk_norm_rope_backward(
        qkv, grad_q, grad_k, grad_v, cos, sin, row, ctx.norm, ctx.eps, weight, bias, ctx.interleaved
    )
    grad_weight = None if weight is None else grad_weight.to(weight.dtype)
    grad_bias = None if bias is None else grad_bias.to(bias.dtype)
    return grad, None, None, None, None, None, None, grad_weight, grad_bias, None


def _save_step(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    _, velocity, _, noise, conditional, unconditional, rows, sequence, ctx.guided_channels = inputs
    ctx.save_for_backward(velocity, conditional, unconditional, rows, sequence)
    ctx.has_noise = noise is not None


def _step_backward(ctx: Any, grad_x_next: Tensor, grad_memory_next: Tensor) -> tuple:
    grad_x, grad_velocity, grad_memory, grad_noise = guided_step_backward(
        grad_x_next, grad_memory_next, *ctx.saved_tensors, ctx.guided_channels
    )
    noise = grad_noise if ctx.has_noise else None
    return grad_x, grad_velocity, grad_memory, noise, None, None, None, None, None


for _operator, _save, _backward in (
    (forward.layer_norm_modulate, _save_modulate, _modulate_backward),
    (forward.gated_residual_layer_norm_modulate, _save_gated, _gated_backward),
    (forward.swiglu, _save_swiglu, _swiglu_backward),
    (forward.rotated_queries_and_keys, _save_rotated, _rotated_backward),
    (forward.guided_step, _save_step, _step_backward),
):
    _operator.register_autograd(_backward, setup_context=_save)


class SplitAndRotate(torch.autograd.Function):
    """`qk_norm_rope` with its values: its gradient is one tensor, every part written in place.

    The registered operator must not return a view of its input; this may, and spares training
    three passes over the projection's gradient.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Arguments of the registered operator; queries, keys and the view of the values."""
        outputs = forward.rotated_queries_and_keys(*inputs)
        _save_rotated(ctx, inputs, outputs)
        return *outputs, values_of(inputs[0], inputs[4])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        """Gradients of the arguments."""
        return _rotated_backward(ctx, *grads)


def values_of(qkv: Tensor, num_heads: int) -> Tensor:
    """The values [T, G, E] of a projection, a view."""
    return qkv[:, num_heads + key_heads(qkv, num_heads) :]
