"""Operators over packed sequences: the public names."""

from fit_kernels.attention import attention_varlen, use_attention
from fit_kernels.backend import use_backend
from fit_kernels.ops import (
    gated_residual_layer_norm_modulate,
    guided_step,
    layer_norm_modulate,
    linear_fixed_tiles,
    qk_norm_rope,
    swiglu,
    ternary_linear,
)
from fit_kernels.rows import gather_rows
from fit_kernels.ternary import use_ternary

__all__ = [
    "attention_varlen",
    "gated_residual_layer_norm_modulate",
    "gather_rows",
    "guided_step",
    "layer_norm_modulate",
    "linear_fixed_tiles",
    "qk_norm_rope",
    "swiglu",
    "ternary_linear",
    "use_attention",
    "use_backend",
    "use_ternary",
]
