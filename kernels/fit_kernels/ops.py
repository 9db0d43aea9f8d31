"""The operators a network calls: arguments of `fit_kernels.reference`, run by the chosen backend.

Shapes and formulas are documented at the reference.
"""

from __future__ import annotations

from torch import Tensor

from fit_kernels.backend import implementation


def layer_norm_modulate(
    x_TD: Tensor, shift_RD: Tensor, scale_RD: Tensor, row_T: Tensor, eps: float = 1e-6
) -> Tensor:
    """`LN(x) * (1 + scale[row]) + shift[row]`, [T, D]."""
    return implementation("layer_norm_modulate")(x_TD, shift_RD, scale_RD, row_T, eps)


def gated_residual(x_TD: Tensor, y_TD: Tensor, gate_RD: Tensor, row_T: Tensor) -> Tensor:
    """`x + gate[row] * y`, [T, D]."""
    return implementation("gated_residual")(x_TD, y_TD, gate_RD, row_T)


def swiglu(gate_TF: Tensor, up_TF: Tensor) -> Tensor:
    """`SiLU(gate) * up`, [T, F]."""
    return implementation("swiglu")(gate_TF, up_TF)


def qk_norm_rope(
    qkv_T3HE: Tensor,
    cos_PE2: Tensor,
    sin_PE2: Tensor,
    rope_row_T: Tensor,
    *,
    qk_norm: bool,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised and rotated queries and keys, and the values, each [T, H, E]."""
    return implementation("qk_norm_rope")(
        qkv_T3HE, cos_PE2, sin_PE2, rope_row_T, qk_norm=qk_norm, eps=eps
    )


def linear_step(
    x_TC: Tensor,
    velocity_TC: Tensor,
    memory_TC: Tensor,
    noise_TC: Tensor | None,
    coefficients_S7: Tensor,
    seq_of_token_T: Tensor,
) -> tuple[Tensor, Tensor]:
    """One linear sampler update with each sequence's own coefficients: x', memory'."""
    return implementation("linear_step")(
        x_TC, velocity_TC, memory_TC, noise_TC, coefficients_S7, seq_of_token_T
    )
