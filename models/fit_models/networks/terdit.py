"""TerDiT: a large diffusion transformer whose blocks have ternary weights.

Readable beside the paper (arXiv:2405.14854) and its parent, Large-DiT; state-dict names are those
of the released packed files, and of the float files they were made from. The original puts
channels fastest in the tokens it returns; here they come out in our one order
(`fit_models.patches`), the variance's channels after the noise's.

Dimension key: T packed tokens, S sequences, R modulation rows, D width, A condition width, H heads,
F MLP width, K token channels, P channels of a token's prediction.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fit_kernels import gated_residual_layer_norm_modulate, layer_norm_modulate, qk_norm_rope
from fit_models.channel_order import channels_slowest
from fit_models.layers import (
    LabelEmbedder,
    TimestepEmbedder,
    attend,
    conditioning_activation,
    linear_at,
)
from fit_models.modulation_rows import Modulation
from fit_models.networks.terdit_config import TerDiTConfig, trained_labels
from fit_models.packing import PackedLayout
from fit_models.ternary import FakeTernaryLinear, TernaryLinear

MakeLinear = Callable[..., nn.Module]
# Of the only norms that are not the blocks' RMSNorms.
_QK_NORM_EPS = 1e-5
_FINAL_NORM_EPS = 1e-6


class Attention(nn.Module):
    """Self-attention inside each packed sequence, rotated by the token's number in the raster."""

    attend = staticmethod(attend)

    def __init__(self, config: TerDiTConfig, linear: MakeLinear) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_heads
        self.wq, self.wk, self.wv, self.wo = (linear(width, width) for _ in range(4))
        self.q_norm, self.k_norm = (
            nn.LayerNorm(width, eps=_QK_NORM_EPS) if config.qk_norm else nn.Identity()
            for _ in range(2)
        )

    def forward(self, x_TD: Tensor, layout: PackedLayout) -> Tensor:
        """[T, D] -> [T, D]."""
        q_TD, k_TD = self.q_norm(self.wq(x_TD)), self.k_norm(self.wk(x_TD))
        qkv_TXE = torch.cat((q_TD, k_TD, self.wv(x_TD)), 1).unflatten(1, (3 * self.num_heads, -1))
        q_THE, k_THE, v_THE = qk_norm_rope(
            qkv_TXE,
            layout.rope_cos,
            layout.rope_sin,
            layout.rope_row,
            num_heads=self.num_heads,
            norm="none",
        )
        return self.wo(self.attend(q_THE, k_THE, v_THE, layout).flatten(1))


class FeedForward(nn.Module):
    """The gated MLP; `w1` is the gate. Both halves have their own factor: nothing is joined."""

    def __init__(self, config: TerDiTConfig, linear: MakeLinear) -> None:
        super().__init__()
        self.w1 = linear(config.hidden_size, config.mlp_hidden)
        self.w2 = linear(config.mlp_hidden, config.hidden_size)
        self.w3 = linear(config.hidden_size, config.mlp_hidden)

    def forward(self, x_TD: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        return self.w2(F.silu(self.w1(x_TD)) * self.w3(x_TD))


class Block(nn.Module):
    """Attention and MLP behind RMSNorms with weights, modulation and gates.

    The modulation passes an RMSNorm too, over all six vectors together: without it ternary
    training gives no pictures of use (arXiv:2405.14854, section 3.3).
    """

    def __init__(self, config: TerDiTConfig, linear: MakeLinear) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.norm_eps
        self.attention = Attention(config, linear)
        self.feed_forward = FeedForward(config, linear)
        self.attention_norm = nn.RMSNorm(width, eps=eps)
        self.ffn_norm = nn.RMSNorm(width, eps=eps)
        self.adaLN_modulation = nn.Sequential(
            nn.SiLU(),
            linear(config.condition_size, 6 * width, bias=True),
            nn.RMSNorm(6 * width, eps=eps),
        )

    def modulation(self, condition_RA: Tensor) -> Tensor:
        """Rows [R, 6 D] with the norms' weights in their scales: `w (1 + scale) - 1`."""
        layers = self.adaLN_modulation
        shift1, scale1, gate1, shift2, scale2, gate2 = layers[2](layers[1](condition_RA)).chunk(
            6, dim=-1
        )
        scale1 = self.attention_norm.weight * (1.0 + scale1) - 1.0
        scale2 = self.ffn_norm.weight * (1.0 + scale2) - 1.0
        return torch.cat((shift1, scale1, gate1, shift2, scale2, gate2), dim=-1)


class FinalLayer(nn.Module):
    """Width back to token channels, in full precision."""

    def __init__(self, config: TerDiTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.linear = nn.Linear(width, config.output_channels)
        self.adaLN_modulation = nn.Sequential(
            nn.SiLU(), nn.Linear(config.condition_size, 2 * width)
        )


class TerDiT(nn.Module):
    """Packed tokens, batch description, timesteps and labels in; packed noise and variance out.

    Args:
        config: what it is made of.
        linear: the blocks' linear layers: `TernaryLinear` to serve, `FakeTernaryLinear` to train.
    """

    float32_weights = (".alphas",)  # one number scales a whole matrix

    def __init__(self, config: TerDiTConfig, linear: MakeLinear = TernaryLinear) -> None:
        super().__init__()
        self.config = config
        self.x_embedder = nn.Linear(config.token_channels, config.hidden_size)
        self.t_embedder = TimestepEmbedder(config.condition_size)
        self.y_embedder = LabelEmbedder(config.num_classes, config.condition_size)
        self.layers = nn.ModuleList(Block(config, linear) for _ in range(config.depth))
        self.final_layer = FinalLayer(config)

    def condition(self, timestep_R: Tensor, label_R: Tensor) -> Tensor:
        """Activated conditioning vector [R, A] that every adaLN projection reads."""
        label_R = trained_labels(self.config, label_R.device).index_select(0, label_R)
        return conditioning_activation(self.t_embedder(timestep_R) + self.y_embedder(label_R))

    def modulate(self, timestep_S: Tensor, label_S: Tensor, layout: PackedLayout) -> Modulation:
        """One modulation row per sequence."""
        condition_SA = self.condition(timestep_S, label_S)
        blocks = []
        for block in self.layers:
            assert isinstance(block, Block)
            blocks.append(block.modulation(condition_SA))
        final_S2D = self.final_layer.adaLN_modulation[1](condition_SA)
        return Modulation(tuple(blocks), final_S2D, layout.seq_of_token)

    def forward(
        self, tokens_TK: Tensor, layout: PackedLayout, timestep_S: Tensor, label_S: Tensor
    ) -> Tensor:
        """Predict the noise, and where the variance lies in its range.

        Args:
            tokens_TK: noisy latent tokens of all sequences, end to end.
            layout: where each sequence lies; its rotary tables are those of
                `fit_models.networks.terdit_config.position_tables`.
            timestep_S: index 0..999 into the trained noise path.
            label_S: int64 class id per sequence, see `TerDiTConfig.label_order`;
                `config.null_label` for none.

        Returns:
            [T, P], same order: noise [K], then variance [K].
        """
        return self.denoise(tokens_TK, layout, self.modulate(timestep_S, label_S, layout))

    def denoise(self, tokens_TK: Tensor, layout: PackedLayout, modulation: Modulation) -> Tensor:
        """The same, with modulation rows made elsewhere: [T, K] -> [T, P]."""
        row_T, rms = modulation.row_of_token, (self.config.norm_eps, "rms")
        following = (*modulation.blocks[1:], modulation.final)
        norms = (*[rms] * (len(self.layers) - 1), (_FINAL_NORM_EPS, "layer"))
        x_TD, width = self.x_embedder(tokens_TK), self.config.hidden_size
        shift_RD, scale_RD = modulation.blocks[0].chunk(6, dim=-1)[:2]
        normed_TD = layer_norm_modulate(x_TD, shift_RD, scale_RD, row_T, *rms)
        for block, own, after, norm in zip(
            self.layers, modulation.blocks, following, norms, strict=True
        ):
            assert isinstance(block, Block)
            _, _, gate1, shift2, scale2, gate2 = own.chunk(6, dim=-1)
            shift3, scale3 = after[:, :width], after[:, width : 2 * width]
            y_TD = block.attention(normed_TD, layout)
            x_TD, normed_TD = gated_residual_layer_norm_modulate(
                x_TD, y_TD, gate1, shift2, scale2, row_T, *rms
            )
            y_TD = block.feed_forward(normed_TD)
            x_TD, normed_TD = gated_residual_layer_norm_modulate(
                x_TD, y_TD, gate2, shift3, scale3, row_T, *norm
            )
        return channels_slowest(self.final_layer.linear(normed_TD), self.config.patch_size)

    def initialize(self) -> None:
        """Fresh weights as TerDiT starts training: Xavier, and zero wherever a gate must be shut.

        Raises:
            ValueError: the weights are packed, and cannot be trained.
        """
        if any(isinstance(module, TernaryLinear) for module in self.modules()):
            raise ValueError("packed weights cannot be trained: make it with FakeTernaryLinear")
        for module in self.modules():
            if isinstance(module, nn.Linear | FakeTernaryLinear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        nn.init.normal_(linear_at(self.t_embedder.mlp, 0).weight, std=0.02)
        nn.init.normal_(linear_at(self.t_embedder.mlp, 2).weight, std=0.02)
        zeroed = [self.final_layer.linear, self.final_layer.adaLN_modulation[1]]
        zeroed += [block.get_submodule("adaLN_modulation.1") for block in self.layers]
        for layer in zeroed:
            assert isinstance(layer.weight, Tensor)
            nn.init.zeros_(layer.weight)
