"""The operators registered with torch as `fit_kernels::*`: compile, export and graphs see them.

Functions of the operators' own names are what `fit_kernels.ops` calls when the backend is `fused`,
or, for ternary weights, on a CPU; nobody else imports this package, and nothing is registered
before.
"""

import torch
from torch import Tensor

from fit_kernels.registered.autograd import SplitAndRotate, values_of
from fit_kernels.registered.forward import (
    gated_residual_layer_norm_modulate,
    guided_step,
    layer_norm_modulate,
    linear_fixed_tiles,
    rotated_queries_and_keys,
    swiglu,
    ternary_linear,
)

__all__ = [
    "gated_residual_layer_norm_modulate",
    "guided_step",
    "layer_norm_modulate",
    "linear_fixed_tiles",
    "qk_norm_rope",
    "swiglu",
    "ternary_linear",
]


def qk_norm_rope(
    qkv_TXE: Tensor,
    cos_PE2: Tensor,
    sin_PE2: Tensor,
    rope_row_T: Tensor,
    *,
    num_heads: int,
    norm: str,
    eps: float = 1e-6,
    weight_JE: Tensor | None = None,
    bias_JE: Tensor | None = None,
    interleaved: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `fit_kernels.reference.qk_norm_rope`; the values are a view of the projection."""
    arguments = (
        qkv_TXE,
        cos_PE2,
        sin_PE2,
        rope_row_T,
        num_heads,
        norm,
        eps,
        weight_JE,
        bias_JE,
        interleaved,
    )
    if torch.is_grad_enabled() and qkv_TXE.requires_grad:
        outputs: tuple[Tensor, Tensor, Tensor] = SplitAndRotate.apply(*arguments)  # pyright: ignore[reportAssignmentType]
        return outputs
    return *rotated_queries_and_keys(*arguments), values_of(qkv_TXE, num_heads)
