"""Operators over packed sequences: the public names."""

from fit_kernels.attention import attention_varlen
from fit_kernels.backend import use_backend
from fit_kernels.ops import (
    gated_residual,
    layer_norm_modulate,
    linear_step,
    qk_norm_rope,
    swiglu,
)
from fit_kernels.rows import gather_rows

__all__ = [
    "attention_varlen",
    "gated_residual",
    "gather_rows",
    "layer_norm_modulate",
    "linear_step",
    "qk_norm_rope",
    "swiglu",
    "use_backend",
]
