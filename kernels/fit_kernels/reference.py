"""Every operator in plain PyTorch: the specification, the fall-back and the test of all others.

Statistics and angles are fp32 whatever the dtype of the tokens.

Dimension key: T packed tokens, Ts state tokens, R modulation rows, S sequences, D width, F MLP
width, H query heads, G key and value heads, X = H + 2G, J = H + G, E head dim, P rows of the rotary
slab, K channels of a token, Q = F / 4 rows of packed ternary weights.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fit_kernels.norms import normalised, normalised_heads
from fit_kernels.rows import gather_rows
from fit_kernels.ternary_weights import unpack_ternary


def layer_norm_modulate(
    x_TD: Tensor,
    shift_RD: Tensor | None,
    scale_RD: Tensor,
    row_T: Tensor,
    eps: float = 1e-6,
    norm: str = "layer",
) -> Tensor:
    """Return `norm(x) * (1 + scale[row]) + shift[row]`, [T, D] (DiT, arXiv:2212.09748, adaLN).

    A norm with a weight w per channel is this with the rows `w (1 + scale) - 1`.

    Args:
        x_TD: tokens.
        shift_RD: one shift per modulation row; None for none (Next-DiT).
        scale_RD: one scale per modulation row; 0 means unchanged.
        row_T: int64 index of each token's row.
        eps, norm: see `fit_kernels.norms.normalised`.
    """
    normed_TD = normalised(x_TD, eps, norm)
    scale_TD = gather_rows(1.0 + scale_RD, row_T)
    if shift_RD is None:
        return normed_TD * scale_TD
    return torch.addcmul(gather_rows(shift_RD, row_T), normed_TD, scale_TD)


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
    """Return `s = x + gate[row] * y` and the next norm's `layer_norm_modulate(s)`, each [T, D].

    The end of one adaLN-Zero branch and the beginning of the next (arXiv:2212.09748).

    Args:
        x_TD: the residual stream.
        y_TD: output of attention or MLP.
        gate_RD: one gate per modulation row.
        shift_RD, scale_RD, row_T, eps, norm: of the next norm, as in `layer_norm_modulate`.
    """
    sum_TD = torch.addcmul(x_TD, gather_rows(gate_RD, row_T), y_TD)
    return sum_TD, layer_norm_modulate(sum_TD, shift_RD, scale_RD, row_T, eps, norm)


def swiglu(gate_up_T2F: Tensor) -> Tensor:
    """Return `SiLU(gate) * up`, shape [T, F] (arXiv:2002.05202).

    Args:
        gate_up_T2F: one projection; its first half passes through SiLU (`fc1_g` in FiT's
            checkpoints), its second is linear (`fc1_x`).
    """
    gate_TF, up_TF = gate_up_T2F.chunk(2, dim=-1)
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


def rotate_half_split(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (j, j + E/2) instead; otherwise as `rotate_interleaved`."""
    first, second = x.to(torch.promote_types(x.dtype, cos.dtype)).chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)


def linear_fixed_tiles(x_TD: Tensor, weight_FD: Tensor, bias_F: Tensor | None = None) -> Tensor:
    """Return `x @ weight^T + bias`, shape [T, F]; for inference, it has no gradient.

    The fused form gives a token the same bits however many others there are; this one promises
    the values only.

    Args:
        x_TD: tokens.
        weight_FD: one row for each feature of the output, as `nn.Linear` keeps it.
        bias_F: one value for each; None for none.
    """
    return F.linear(x_TD, weight_FD, bias_F)


def ternary_linear(
    x_TD: Tensor, packed_QD: Tensor, alpha_1: Tensor, bias_F: Tensor | None = None
) -> Tensor:
    """Return `x @ (alpha values)^T + bias`, shape [T, F] (TerDiT, arXiv:2405.14854).

    For inference, it has no gradient. Only this form makes the weight of floats.

    Args:
        x_TD: tokens.
        packed_QD: uint8 [F / 4, D], values -1, 0 and 1 as `fit_kernels.ternary_weights` packs them.
        alpha_1: what all of them are multiplied by; may be negative.
        bias_F: one value for each feature; None for none.
    """
    weight_FD = unpack_ternary(packed_QD, x_TD.dtype) * alpha_1.to(x_TD.dtype)
    return F.linear(x_TD, weight_FD, bias_F)


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
    """Split the projection and return rotated queries, rotated keys and the values.

    Args:
        qkv_TXE: the projection: H query heads, then G key heads, then G value heads.
        cos_PE2: rotary slab [P, E/2], fp32, one cosine per pair, any multiplier already in it.
        sin_PE2: rotary slab [P, E/2], fp32.
        rope_row_T: int64 row of the slab for each token.
        num_heads: H; G follows from the number of heads of the projection.
        norm: over each head's values before the rotation (FiTv2: "layer"); see
            `fit_kernels.norms.normalised`.
        eps: of that norm.
        weight_JE: of that norm, one row for each query and key head; None for none.
        bias_JE: likewise.
        interleaved: pairs are (2j, 2j + 1) as in FiT and Lumina, otherwise (j, j + E/2).

    Returns:
        q [T, H, E], k and v [T, G, E].

    Raises:
        ValueError: the projection has no such number of query heads.
    """
    num_keys = key_heads(qkv_TXE, num_heads)
    qk_TJE, v_TGE = qkv_TXE.split((num_heads + num_keys, num_keys), dim=1)
    qk_TJE = normalised_heads(qk_TJE, eps, norm)
    if weight_JE is not None:
        qk_TJE = qk_TJE * weight_JE
    if bias_JE is not None:
        qk_TJE = qk_TJE + bias_JE
    cos_T1P = cos_PE2.index_select(0, rope_row_T)[:, None]
    sin_T1P = sin_PE2.index_select(0, rope_row_T)[:, None]
    rotate = rotate_interleaved if interleaved else rotate_half_split
    q_THE, k_TGE = (
        rotate(qk_TJE, cos_T1P, sin_T1P).to(v_TGE.dtype).split((num_heads, num_keys), dim=1)
    )
    return q_THE, k_TGE, v_TGE


def key_heads(qkv_TXE: Tensor, num_heads: int) -> int:
    """G, the number of key heads of a projection of H + 2G heads.

    Raises:
        ValueError: the rest is not two equal parts, or a query head would have no key head.
    """
    rest = qkv_TXE.shape[1] - num_heads
    num_keys = rest // 2  # no divmod: under a compiler these are symbols
    if rest % 2 or num_keys < 1 or num_heads < 1 or num_heads % num_keys:
        raise ValueError(
            f"num_heads is {num_heads}; a projection of {qkv_TXE.shape[1]} heads must be H query, "
            "G key and G value heads, H a multiple of G"
        )
    return num_keys


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
    """Guide every sequence by its own scale and advance it by its own linear rule, in fp32.

    With a row (a, b, c, d, e, f, g, s) of a sequence, and v its guided velocity::

        v       = null + s (conditional - null)  in the guided channels, conditional in the others
        x'      = a x + b v + c memory + d noise
        memory' = e x + f v + g memory

    Args:
        x_TsK: what the network was just evaluated at, once per sequence.
        velocity_TK: its predictions for the packed tokens of all branches.
        memory_TsK: what the sampler remembers of this step.
        noise_TsK: standard normal draws; None when no sequence has d other than 0.
        conditional_Ts: int64, the packed token each state token's conditional prediction is.
        unconditional_Ts: int64, likewise; the same token where there is one branch. The same
            tensor says that no sequence has two.
        rows_S8: fp32, one row per sequence.
        sequence_Ts: int64, the sequence of each state token.
        guided_channels: leading channels that guidance changes (FiT: 12 of 16).

    Returns:
        x' and memory', each [Ts, K].
    """
    rows = rows_S8.index_select(0, sequence_Ts)[:, :, None]
    a, b, c, d, e, f, g, scale = rows.unbind(1)
    velocity_TsK = velocity_TK.index_select(0, conditional_Ts).to(x_TsK.dtype)
    if unconditional_Ts is not conditional_Ts:
        split = (guided_channels, velocity_TsK.shape[1] - guided_channels)
        null_TsK = velocity_TK.index_select(0, unconditional_Ts).to(x_TsK.dtype)[:, : split[0]]
        moved, kept = velocity_TsK.split(split, dim=1)
        velocity_TsK = torch.cat((null_TsK + scale * (moved - null_TsK), kept), dim=1)
    x_next = a * x_TsK + b * velocity_TsK + c * memory_TsK
    if noise_TsK is not None:
        x_next = x_next + d * noise_TsK
    memory_next = e * x_TsK + f * velocity_TsK + g * memory_TsK
    return x_next, memory_next
