"""Every operator in plain PyTorch: the specification, the fall-back and the test of all others.

Statistics and angles are fp32 whatever the dtype of the tokens.

Dimension key: T packed tokens, R modulation rows, S sequences, D width, F MLP width, H heads,
E head dim, P rows of the rotary slab, C channels of a token.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fit_kernels.rows import gather_rows


def layer_norm_modulate(
    x_TD: Tensor, shift_RD: Tensor, scale_RD: Tensor, row_T: Tensor, eps: float = 1e-6
) -> Tensor:
    """Return `LN(x) * (1 + scale[row]) + shift[row]`, shape [T, D] (DiT, arXiv:2212.09748, adaLN).

    Args:
        x_TD: tokens; statistics are taken in fp32 whatever the dtype.
        shift_RD: one shift per modulation row.
        scale_RD: one scale per modulation row; 0 means unchanged.
        row_T: int64 index of each token's row.
        eps: added to the (biased) variance.
    """
    normed_TD = F.layer_norm(x_TD, (x_TD.shape[-1],), eps=eps)
    return torch.addcmul(
        gather_rows(shift_RD, row_T), normed_TD, gather_rows(1.0 + scale_RD, row_T)
    )


def gated_residual(x_TD: Tensor, y_TD: Tensor, gate_RD: Tensor, row_T: Tensor) -> Tensor:
    """Return `x + gate[row] * y`, shape [T, D] (adaLN-Zero, arXiv:2212.09748).

    Args:
        x_TD: the residual stream.
        y_TD: output of attention or MLP.
        gate_RD: one gate per modulation row.
        row_T: int64 index of each token's row.
    """
    return torch.addcmul(x_TD, gather_rows(gate_RD, row_T), y_TD)


def swiglu(gate_TF: Tensor, up_TF: Tensor) -> Tensor:
    """Return `SiLU(gate) * up`, shape [T, F] (arXiv:2002.05202).

    Args:
        gate_TF: the half that passes through SiLU (`fc1_g` in FiT's checkpoints).
        up_TF: the linear half (`fc1_x`).
    """
    return F.silu(gate_TF) * up_TF


def rotate_interleaved(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each adjacent pair (2j, 2j+1) of the last dim by its angle, in fp32 or wider.

    Args:
        x: [..., E] queries or keys.
        cos: [..., E/2] cosines, one per pair, any multiplier already in them.
        sin: [..., E/2] sines.

    Returns:
        as `x`, in the wider dtype (RoFormer, arXiv:2104.09864, eq. 34).
    """
    pairs = x.to(torch.promote_types(x.dtype, cos.dtype)).unflatten(-1, (-1, 2))
    if not torch.compiler.is_compiling():
        # A pair is a complex number and its rotation one product: half the time of the four
        # products below, which are what a compiler can fuse.
        turn = torch.complex(cos.to(pairs.dtype), sin.to(pairs.dtype))
        return torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * turn).flatten(-2)
    even, odd = pairs.unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


def qk_norm_rope(
    qkv_T3HE: Tensor,
    cos_PE2: Tensor,
    sin_PE2: Tensor,
    rope_row_T: Tensor,
    *,
    qk_norm: bool,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor, Tensor]:
    """Split the projection and return rotated queries, rotated keys and the values.

    Args:
        qkv_T3HE: [T, 3, H, E], query, key, value in this order.
        cos_PE2: rotary slab [P, E/2], fp32, one cosine per pair.
        sin_PE2: rotary slab [P, E/2], fp32.
        rope_row_T: int64 row of the slab for each token.
        qk_norm: LayerNorm without weights over the head dim before the rotation (FiTv2).
        eps: of that LayerNorm.

    Returns:
        q, k, v, each [T, H, E].
    """
    qk_T2HE, v_THE = qkv_T3HE[:, :2], qkv_T3HE[:, 2]
    if qk_norm:
        qk_T2HE = F.layer_norm(qk_T2HE, (qk_T2HE.shape[-1],), eps=eps)
    cos_T11P = cos_PE2.index_select(0, rope_row_T)[:, None, None]
    sin_T11P = sin_PE2.index_select(0, rope_row_T)[:, None, None]
    q_THE, k_THE = rotate_interleaved(qk_T2HE, cos_T11P, sin_T11P).to(v_THE.dtype).unbind(1)
    return q_THE, k_THE, v_THE


def linear_step(
    x_TC: Tensor,
    velocity_TC: Tensor,
    memory_TC: Tensor,
    noise_TC: Tensor | None,
    coefficients_S7: Tensor,
    seq_of_token_T: Tensor,
) -> tuple[Tensor, Tensor]:
    """Advance every sequence by its own linear rule, in fp32.

    With a row (a, b, c, d, e, f, g) of a sequence::

        x'      = a x + b velocity + c memory + d noise
        memory' = e x + f velocity + g memory

    Args:
        x_TC: what the network was just evaluated at.
        velocity_TC: its (guided) prediction.
        memory_TC: what the sampler remembers of this step.
        noise_TC: standard normal draws; None when no sequence has d other than 0.
        coefficients_S7: fp32, one row per sequence.
        seq_of_token_T: int64.

    Returns:
        x' and memory', each [T, C].
    """
    a, b, c, d, e, f, g = coefficients_S7.index_select(0, seq_of_token_T)[:, :, None].unbind(1)
    x_next = a * x_TC + b * velocity_TC + c * memory_TC
    if noise_TC is not None:
        x_next = x_next + d * noise_TC
    memory_next = e * x_TC + f * velocity_TC + g * memory_TC
    return x_next, memory_next
