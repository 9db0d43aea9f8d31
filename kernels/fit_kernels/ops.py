"""The operators a network calls: arguments of `fit_kernels.reference`, run by the chosen backend.

Shapes and formulas are documented at the reference.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fit_kernels.backend import implementation


def layer_norm_modulate(
    x_TD: Tensor,
    shift_RD: Tensor | None,
    scale_RD: Tensor,
    row_T: Tensor,
    eps: float = 1e-6,
    norm: str = "layer",
) -> Tensor:
    """`norm(x) * (1 + scale[row]) + shift[row]`, [T, D]."""
    return implementation("layer_norm_modulate")(x_TD, shift_RD, scale_RD, row_T, eps, norm)


def gated_residual_layer_norm_modulate(
    x_TD: Tensor,
    y_TD: Tensor,
    gate_RD: Tensor,
    shift_RD: Tensor | None,
    scale_RD: Tensor,
    row_T: Tensor,
    eps: float = 1e-6,
    norm: str = "layer",
) -> tuple[Tensor, Tensor]:
    """`s = x + gate[row] * y` and the next `layer_norm_modulate(s)`, each [T, D]."""
    return implementation("gated_residual_layer_norm_modulate")(
        x_TD, y_TD, gate_RD, shift_RD, scale_RD, row_T, eps, norm
    )


def swiglu(gate_up_T2F: Tensor) -> Tensor:
    """`SiLU(gate) * up` of the two halves of one projection, [T, F]."""
    return implementation("swiglu")(gate_up_T2F)


def linear_fixed_tiles(x_TD: Tensor, weight_FD: Tensor, bias_F: Tensor | None = None) -> Tensor:
    """`x @ weight^T + bias`, [T, F]; fused, the bits of a row do not depend on the other rows.

    Raises:
        ValueError: a gradient would be wanted; there is none.
    """
    tensors = (x_TD, weight_FD, bias_F)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        raise ValueError("linear_fixed_tiles has no gradient: run it in torch.inference_mode()")
    return implementation("linear_fixed_tiles")(x_TD, weight_FD, bias_F)


def ternary_linear(
    x_TD: Tensor, packed_QD: Tensor, alpha_1: Tensor, bias_F: Tensor | None = None
) -> Tensor:
    """`x @ (alpha values)^T + bias`, [T, F], of packed ternary weights that stay packed.

    A CPU has products of its own, whatever the backend: see `fit_kernels.ternary`.

    Raises:
        ValueError: a gradient would be wanted; there is none.
    """
    tensors = (x_TD, alpha_1, bias_F)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        raise ValueError(
            "ternary_linear has no gradient: run it in torch.inference_mode(), or train the float "
            "weights with fit_models.ternary.FakeTernaryLinear"
        )
    if x_TD.device.type == "cpu":
        from fit_kernels import registered

        return registered.ternary_linear(x_TD, packed_QD, alpha_1, bias_F)
    return implementation("ternary_linear")(x_TD, packed_QD, alpha_1, bias_F)


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
    """Normalised and rotated queries [T, H, E] and keys [T, G, E], and the values [T, G, E]."""
    return implementation("qk_norm_rope")(
        qkv_TXE,
        cos_PE2,
        sin_PE2,
        rope_row_T,
        num_heads=num_heads,
        norm=norm,
        eps=eps,
        weight_JE=weight_JE,
        bias_JE=bias_JE,
        interleaved=interleaved,
    )


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
    """Guidance and one linear sampler update, each sequence by its own row: x', memory'."""
    return implementation("guided_step")(
        x_TsK,
        velocity_TK,
        memory_TsK,
        noise_TsK,
        conditional_Ts,
        unconditional_Ts,
        rows_S8,
        sequence_Ts,
        guided_channels,
    )
