"""The operators as torch knows them, without their gradients.

Each runs the Triton kernel on a CUDA device, or anywhere under Triton's interpreter, and the
reference elsewhere. No `annotations` import from the future here: torch reads the signatures.
"""

from torch import Tensor
from torch.library import custom_op

from fit_kernels import reference
from fit_kernels.launch import interpreting
from fit_kernels.ternary.choice import product_on_cpu


def runs_fused(x: Tensor) -> bool:
    """Whether Triton kernels can run where this tensor is."""
    return x.is_cuda or interpreting()


@custom_op("fit_kernels::layer_norm_modulate", mutates_args=())
def layer_norm_modulate(
    x: Tensor, shift: Tensor | None, scale: Tensor, row: Tensor, eps: float, norm: str
) -> Tensor:
    """See `fit_kernels.reference.layer_norm_modulate`."""
    if runs_fused(x):
        from fit_kernels.fused import layer_norm_modulate as fused

        return fused.layer_norm_modulate(x, shift, scale, row, eps, norm)
    out = reference.layer_norm_modulate(x, shift, scale, row, eps, norm)
    return out.to(x.dtype).contiguous()


@layer_norm_modulate.register_fake
def _(x, shift, scale, row, eps, norm):
    return x.new_empty(x.shape)


@custom_op("fit_kernels::gated_residual_layer_norm_modulate", mutates_args=())
def gated_residual_layer_norm_modulate(
    x: Tensor,
    y: Tensor,
    gate: Tensor,
    shift: Tensor | None,
    scale: Tensor,
    row: Tensor,
    eps: float,
    norm: str,
) -> tuple[Tensor, Tensor]:
    """See `fit_kernels.reference.gated_residual_layer_norm_modulate`."""
    if runs_fused(x):
        from fit_kernels.fused import layer_norm_modulate as fused

        return fused.gated_residual_layer_norm_modulate(x, y, gate, shift, scale, row, eps, norm)
    total, out = reference.gated_residual_layer_norm_modulate(
        x, y, gate, shift, scale, row, eps, norm
    )
    return total.to(x.dtype).contiguous(), out.to(x.dtype).contiguous()


@gated_residual_layer_norm_modulate.register_fake
def _(x, y, gate, shift, scale, row, eps, norm):
    return x.new_empty(x.shape), x.new_empty(x.shape)


@custom_op("fit_kernels::swiglu", mutates_args=())
def swiglu(gate_up: Tensor) -> Tensor:
    """See `fit_kernels.reference.swiglu`."""
    if runs_fused(gate_up):
        from fit_kernels.fused import swiglu as fused

        return fused.swiglu(gate_up)
    return reference.swiglu(gate_up).contiguous()


@swiglu.register_fake
def _(gate_up):
    return gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)


@custom_op("fit_kernels::linear_fixed_tiles", mutates_args=())
def linear_fixed_tiles(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """See `fit_kernels.reference.linear_fixed_tiles`; the one without a gradient."""
    if runs_fused(x):
        from fit_kernels.fused import linear_fixed_tiles as fused

        return fused.linear_fixed_tiles(x, weight, bias)
    return reference.linear_fixed_tiles(x, weight, bias)


@linear_fixed_tiles.register_fake
def _(x, weight, bias):
    return x.new_empty(x.shape[0], weight.shape[0])


@custom_op("fit_kernels::ternary_linear", mutates_args=())
def ternary_linear(x: Tensor, packed: Tensor, alpha: Tensor, bias: Tensor | None) -> Tensor:
    """See `fit_kernels.reference.ternary_linear`; a CPU runs what `fit_kernels.ternary` chose."""
    if runs_fused(x):
        from fit_kernels.fused import ternary_linear as fused

        return fused.ternary_linear(x, packed, alpha, bias)
    if x.device.type == "cpu":
        return product_on_cpu(x, packed, alpha, bias)
    return reference.ternary_linear(x, packed, alpha, bias)


@ternary_linear.register_fake
def _(x, packed, alpha, bias):
    return x.new_empty(x.shape[0], 4 * packed.shape[0])


@custom_op("fit_kernels::qk_norm_rope", mutates_args=())
def rotated_queries_and_keys(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    row: Tensor,
    num_heads: int,
    norm: str,
    eps: float,
    weight: Tensor | None,
    bias: Tensor | None,
    interleaved: bool,
) -> tuple[Tensor, Tensor]:
    """See `fit_kernels.reference.qk_norm_rope`; the values stay where they are."""
    if runs_fused(qkv):
        from fit_kernels.fused import qk_norm_rope as fused

        return fused.qk_norm_rope(
            qkv, cos, sin, row, num_heads, norm, eps, weight, bias, interleaved
        )
    q, k, _ = reference.qk_norm_rope(
        qkv,
        cos,
        sin,
        row,
        num_heads=num_heads,
        norm=norm,
        eps=eps,
        weight_JE=weight,
        bias_JE=bias,
        interleaved=interleaved,
    )
    return q.clone(), k.clone()  # two tensors of their own, as the kernel gives


@rotated_queries_and_keys.register_fake
def _(qkv, cos, sin, row, num_heads, norm, eps, weight, bias, interleaved):
    num_keys = reference.key_heads(qkv, num_heads)
    shape = (qkv.shape[0], num_heads, qkv.shape[2])
    return qkv.new_empty(shape), qkv.new_empty(shape[0], num_keys, shape[2])


@custom_op("fit_kernels::guided_step", mutates_args=())
def guided_step(
    x: Tensor,
    velocity: Tensor,
    memory: Tensor,
    noise: Tensor | None,
    conditional: Tensor,
    unconditional: Tensor,
    rows: Tensor,
    sequence: Tensor,
    guided_channels: int,
) -> tuple[Tensor, Tensor]:
    """See `fit_kernels.reference.guided_step`."""
    step = reference.guided_step
    if runs_fused(x):
        from fit_kernels.fused import guided_step as fused

        step = fused.guided_step
    return step(
        x, velocity, memory, noise, conditional, unconditional, rows, sequence, guided_channels
    )


@guided_step.register_fake
def _(x, velocity, memory, noise, conditional, unconditional, rows, sequence, guided_channels):
    return x.new_empty(x.shape), x.new_empty(x.shape)
