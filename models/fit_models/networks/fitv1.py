"""FiT, version 1: any grid by 2-D RoPE and a gated MLP, conditioned as DiT is.

Readable beside the paper (arXiv:2402.12376); state-dict names are those of the released files.
Three things differ from FiTv2: no norm of queries and keys, one full adaLN projection a block, and
a prediction of noise and variance at a raw timestep. (The released code caps that timestep at 1,
which no trained weights can mean; it is not capped here.)

Dimension key: T packed tokens, S sequences, R modulation rows, D width, H heads, E head dim,
K token channels, P channels of a token's prediction.
"""

from __future__ import annotations

from torch import Tensor, nn

from fit_kernels import qk_norm_rope
from fit_models.adaln_block import AdaLNBlock, adaln_projection, full_modulation, run_blocks
from fit_models.layers import (
    Attention,
    FinalLayer,
    LabelEmbedder,
    PatchEmbedder,
    SwiGLU,
    TimestepEmbedder,
    conditioning_activation,
    linear_at,
)
from fit_models.modulation_rows import Modulation
from fit_models.networks.fitv1_config import FiTv1Config
from fit_models.packing import PackedLayout


class RotaryAttention(Attention):
    """FiTv2's attention without its norm of queries and keys."""

    def forward(self, x_TD: Tensor, layout: PackedLayout) -> Tensor:
        """[T, D] -> [T, D]."""
        q_THE, k_THE, v_THE = qk_norm_rope(
            self.qkv(x_TD).unflatten(-1, (3 * self.num_heads, -1)),
            layout.rope_cos,
            layout.rope_sin,
            layout.rope_row,
            num_heads=self.num_heads,
            norm="none",
        )
        return self.proj(self.attend(q_THE, k_THE, v_THE, layout).flatten(1))


class FiTv1(nn.Module):
    """Packed tokens, batch description, timesteps and labels in; packed noise and variance out."""

    def __init__(self, config: FiTv1Config) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.x_embedder = PatchEmbedder(config.token_channels, width)
        self.t_embedder = TimestepEmbedder(width)
        self.y_embedder = LabelEmbedder(config.num_classes, width)
        self.blocks = nn.ModuleList(
            AdaLNBlock(
                width, RotaryAttention(width, config.num_heads), SwiGLU(width, config.mlp_hidden)
            )
            for _ in range(config.depth)
        )
        self.final_layer = FinalLayer(width, config.output_channels)

    def condition(self, timestep_R: Tensor, label_R: Tensor) -> Tensor:
        """Activated conditioning vector [R, D] that every adaLN projection reads."""
        return conditioning_activation(self.t_embedder(timestep_R) + self.y_embedder(label_R))

    def modulate(self, timestep_S: Tensor, label_S: Tensor, layout: PackedLayout) -> Modulation:
        """One modulation row per sequence."""
        condition_SD = self.condition(timestep_S, label_S)
        return full_modulation(self.blocks, self.final_layer, condition_SD, layout.seq_of_token)

    def forward(
        self, tokens_TK: Tensor, layout: PackedLayout, timestep_S: Tensor, label_S: Tensor
    ) -> Tensor:
        """Predict the noise and where the variance lies in its range.

        Args:
            tokens_TK: noisy latent tokens of all sequences, end to end.
            layout: where each sequence lies, with the cosines and sines of its positions.
            timestep_S: index 0..999 into the trained noise path.
            label_S: int64 class label per sequence; `config.null_label` for none.

        Returns:
            [T, P], same order: the noise [K], then the variance [K] where it is learned.
        """
        return self.denoise(tokens_TK, layout, self.modulate(timestep_S, label_S, layout))

    def denoise(self, tokens_TK: Tensor, layout: PackedLayout, modulation: Modulation) -> Tensor:
        """The same, with modulation rows made elsewhere: [T, K] -> [T, P]."""
        x_TD = self.x_embedder(tokens_TK)
        return self.final_layer(run_blocks(self.blocks, x_TD, modulation, layout))

    def initialize(self) -> None:
        """Fresh weights as FiT starts training: Xavier, and zero wherever a gate must be shut."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        nn.init.normal_(linear_at(self.t_embedder.mlp, 0).weight, std=0.02)
        nn.init.normal_(linear_at(self.t_embedder.mlp, 2).weight, std=0.02)
        zeroed = [adaln_projection(module) for module in (*self.blocks, self.final_layer)]
        for layer in [*zeroed, self.final_layer.linear]:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
