"""Layers that all Lumina networks share, with the names of the released checkpoints.

Knows shapes and formulas; not the order of a block (`lumina_blocks`) or of a network.
Sources: Lumina-T2X (arXiv:2405.05945), Lumina-Next (arXiv:2406.18583); the gated attention to text
is LLaMA-Adapter's (arXiv:2303.16199).

Dimension key: T packed tokens, S sequences, D width, H query heads, G key and value heads, E head
dim, X = H + 2G, F MLP width, M width of the condition, K token channels, P channels of a token's
prediction, Y packed caption tokens, C channels of the language model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fit_kernels import (
    gated_residual_layer_norm_modulate,
    layer_norm_modulate,
    qk_norm_rope,
    swiglu,
)
from fit_models.cross_attention import cross_attend
from fit_models.layers import attend, linear_at
from fit_models.networks.lumina_config import LuminaConfig
from fit_models.packing import PackedLayout

_FINAL_EPS = 1e-6
CaptionKeys = tuple[Tensor, Tensor]


class NormRows(NamedTuple):
    """A norm of the residual stream and the modulation rows that follow it.

    Attributes:
        shift: [S, D], or None for none.
        scale: [S, D]; where the norm has a weight w, w (1 + scale) - 1.
        eps, norm: see `fit_kernels.layer_norm_modulate`.
    """

    shift: Tensor | None
    scale: Tensor
    eps: float
    norm: str

    def of(self, x_TD: Tensor, row_T: Tensor) -> Tensor:
        """[T, D] -> [T, D], in the dtype of the tokens."""
        normed_TD = layer_norm_modulate(x_TD, self.shift, self.scale, row_T, self.eps, self.norm)
        return normed_TD.to(x_TD.dtype)

    def after(
        self, x_TD: Tensor, y_TD: Tensor, gate_SD: Tensor, row_T: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The stream with a gated branch added, and normed, each [T, D] in the tokens' dtype.

        Rows may be wider than tokens; where the operator then widens, its results are narrowed.
        """
        sum_TD, normed_TD = gated_residual_layer_norm_modulate(
            x_TD, y_TD, gate_SD, self.shift, self.scale, row_T, self.eps, self.norm
        )
        return sum_TD.to(x_TD.dtype), normed_TD.to(x_TD.dtype)


@dataclass(frozen=True)
class Surroundings:
    """What attention needs to know besides its tokens.

    Attributes:
        layout: where each sequence lies.
        key_factor_T11: temperature of self-attention as a factor on each token's key, or None.
        caption_lengths: tokens of each sequence's caption; empty without captions.
    """

    layout: PackedLayout
    key_factor_T11: Tensor | None = None
    caption_lengths: tuple[int, ...] = ()


def proportional_factor(layout: PackedLayout, base: int) -> Tensor:
    """Factor on keys that keeps attention's entropy as lengths grow: sqrt(log_base N), [T, 1, 1].

    The temperature is then sqrt(log_base(N) / E) (arXiv:2406.18583, §2.2), for each sequence by
    its own length where the original takes the longest of the batch.
    """
    length_S = layout.cu_seqlens.diff().clamp(min=1).float()
    factor_S = (length_S.log() / torch.log(length_S.new_tensor(float(base)))).sqrt()
    return factor_S.index_select(0, layout.seq_of_token)[:, None, None]


class RmsWeight(nn.Module):
    """The weight of an RMS norm; who owns one decides where it is multiplied."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))


class LuminaAttention(nn.Module):
    """Self-attention with norms over all heads together, and a gated look at the caption."""

    def __init__(self, config: LuminaConfig, caption_channels: int | None = None) -> None:
        super().__init__()
        width, self.head_dim = config.hidden_size, config.head_dim
        key_width = config.key_heads * config.head_dim
        self.num_heads = config.num_heads
        self.wq = nn.Linear(width, width, bias=False)
        self.wk = nn.Linear(width, key_width, bias=False)
        self.wv = nn.Linear(width, key_width, bias=False)
        self.wo = nn.Linear(width, width, bias=False)
        norm = nn.LayerNorm if config.qk_norm else nn.Identity
        self.q_norm, self.k_norm = norm(width), norm(key_width)
        self.has_captions = caption_channels is not None
        if caption_channels is not None:
            self.wk_y = nn.Linear(caption_channels, key_width, bias=False)
            self.wv_y = nn.Linear(caption_channels, key_width, bias=False)
            self.ky_norm = norm(key_width)
            self.gate = nn.Parameter(torch.zeros(config.num_heads))

    def caption_keys(self, features_YC: Tensor) -> CaptionKeys:
        """Keys and values of normalised caption states, each [Y, G, E]; they are not rotated."""
        k_YD, v_YD = self.ky_norm(self.wk_y(features_YC)), self.wv_y(features_YC)
        shape = (-1, self.head_dim)
        return k_YD.unflatten(-1, shape), v_YD.unflatten(-1, shape)

    def forward(self, x_TD: Tensor, around: Surroundings, captions: CaptionKeys | None) -> Tensor:
        """[T, D] -> [T, D]."""
        layout = around.layout
        projected = (self.q_norm(self.wq(x_TD)), self.k_norm(self.wk(x_TD)), self.wv(x_TD))
        q_THE, k_TGE, v_TGE = qk_norm_rope(
            torch.cat(projected, dim=-1).unflatten(-1, (-1, self.head_dim)),
            layout.rope_cos,
            layout.rope_sin,
            layout.rope_row,
            num_heads=self.num_heads,
            norm="none",
        )
        if around.key_factor_T11 is not None:
            k_TGE = k_TGE * around.key_factor_T11.to(k_TGE.dtype)
        out_THE = attend(q_THE, k_TGE, v_TGE, layout)
        if captions is not None:
            seen_THE = cross_attend(q_THE, *captions, layout.lengths, around.caption_lengths)
            out_THE = torch.addcmul(out_THE, self.gate.tanh()[:, None], seen_THE)
        return self.wo(out_THE.flatten(1))


class FeedForward(nn.Module):
    """The gated MLP; `w1` is the gate, `w3` the linear half."""

    def __init__(self, width: int, mlp_hidden: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, mlp_hidden, bias=False)
        self.w2 = nn.Linear(mlp_hidden, width, bias=False)
        self.w3 = nn.Linear(width, mlp_hidden, bias=False)

    def forward(self, x_TD: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        return self.w2(swiglu(torch.cat((self.w1(x_TD), self.w3(x_TD)), dim=-1)))


class LuminaFinalLayer(nn.Module):
    """Width back to token channels.

    The released layer puts channels fastest and has twice the latent's; here they come out in our
    one order (`fit_models.patches`), and those that nobody reads are not computed.
    """

    def __init__(self, config: LuminaConfig, has_shift: bool = True) -> None:
        super().__init__()
        width = config.hidden_size
        self.patch_area = config.patch_size**2
        self.kept_channels = config.output_channels // self.patch_area
        self.has_shift = has_shift
        self.linear = nn.Linear(width, self.patch_area * config.final_channels)
        self.adaLN_modulation = adaln(config, 2 if has_shift else 1)

    def rows(self, condition_SM: Tensor) -> Tensor:
        """[S, 2 D]: shift and scale; or the scale alone, [S, D]."""
        return linear_at(self.adaLN_modulation, 1)(condition_SM)

    def norm_rows(self, rows: Tensor) -> NormRows:
        """The norm in front of it: LayerNorm without weight."""
        shift, scale = rows.chunk(2, dim=-1) if self.has_shift else (None, rows)
        return NormRows(shift, scale, _FINAL_EPS, "layer")

    def forward(self, normed_TD: Tensor) -> Tensor:
        """[T, D], normalised and modulated -> [T, P]."""
        return F.linear(normed_TD, self._ours(self.linear.weight), self._ours(self.linear.bias))

    def _ours(self, rows: Tensor) -> Tensor:
        by_channel = rows.unflatten(0, (self.patch_area, -1)).transpose(0, 1)
        return by_channel[: self.kept_channels].flatten(0, 1)


def adaln(config: LuminaConfig, vectors: int) -> nn.Sequential:
    """The projection of the condition to some vectors of width D."""
    return nn.Sequential(nn.SiLU(), nn.Linear(config.condition_size, vectors * config.hidden_size))


def folded(scale_SD: Tensor, weight_D: Tensor) -> Tensor:
    """Scale rows that also multiply by a norm's weight: w (1 + scale) - 1, fp32 or wider.

    In half precision a small w would drown in the 1 it is taken from.
    """
    wide = torch.promote_types(weight_D.dtype, torch.float32)
    weight_D = weight_D.to(wide)
    return torch.addcmul(weight_D - 1.0, weight_D, scale_SD.to(wide))
