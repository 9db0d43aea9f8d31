"""FiTv2: the flexible vision transformer with low-rank adaLN, QK-norm and 2-D RoPE.

Readable beside the paper (arXiv:2410.13925); state-dict names are those of the released files.

Dimension key: T packed tokens, S sequences, R modulation rows, D width, K token channels.
"""

from __future__ import annotations

from torch import Tensor, nn

from fit_kernels import layer_norm_modulate
from fit_models.config import ModelConfig
from fit_models.layers import (
    Block,
    FinalLayer,
    LabelEmbedder,
    PatchEmbedder,
    TimestepEmbedder,
    conditioning_activation,
    linear_at,
    shifted_timestep,
)
from fit_models.modulation_rows import Modulation
from fit_models.packing import PackedLayout


class FiTv2(nn.Module):
    """Packed tokens, batch description, timesteps and labels in; packed velocity out."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.x_embedder = PatchEmbedder(config.token_channels, width)
        self.t_embedder = TimestepEmbedder(width)
        self.y_embedder = LabelEmbedder(config.num_classes, width)
        self.global_adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.blocks = nn.ModuleList(
            Block(width, config.num_heads, config.mlp_hidden, config.adaln_lora_dim)
            for _ in range(config.depth)
        )
        self.final_layer = FinalLayer(width, config.token_channels)

    def condition(self, timestep_R: Tensor, label_R: Tensor) -> Tensor:
        """Activated conditioning vector [R, D] that every adaLN projection reads."""
        t_R = shifted_timestep(timestep_R, self.config.time_shifting)
        return conditioning_activation(self.t_embedder(t_R) + self.y_embedder(label_R))

    def low_rank_modulations(self) -> list[tuple[nn.Linear, nn.Linear]]:
        """The two linear maps of every block's adaLN: down to the rank, up to six vectors."""
        pairs = []
        for block in self.blocks:
            assert isinstance(block, Block)
            layers = block.adaLN_modulation
            pairs.append((linear_at(layers, 1), linear_at(layers, 2)))
        return pairs

    def modulate(self, timestep_S: Tensor, label_S: Tensor, layout: PackedLayout) -> Modulation:
        """One modulation row per sequence, computed block by block."""
        condition_SD = self.condition(timestep_S, label_S)
        shared_S6D = self.global_adaLN_modulation[1](condition_SD)
        blocks = tuple(
            shared_S6D + up(down(condition_SD)) for down, up in self.low_rank_modulations()
        )
        final_S2D = self.final_layer.adaLN_modulation[1](condition_SD)
        return Modulation(blocks, final_S2D, layout.seq_of_token)

    def forward(
        self,
        tokens_TK: Tensor,
        layout: PackedLayout,
        timestep_S: Tensor,
        label_S: Tensor,
    ) -> Tensor:
        """Predict the velocity (data - noise) of every token.

        Args:
            tokens_TK: noisy latent tokens of all sequences, end to end.
            layout: where each sequence lies.
            timestep_S: FiTv2's t per sequence: 0 is noise, 1 is data.
            label_S: int64 class label per sequence; `config.null_label` for none.

        Returns:
            [T, K], same order.
        """
        return self.denoise(tokens_TK, layout, self.modulate(timestep_S, label_S, layout))

    def denoise(
        self,
        tokens_TK: Tensor,
        layout: PackedLayout,
        modulation: Modulation,
    ) -> Tensor:
        """The same, with modulation rows made elsewhere: [T, K] -> [T, K]."""
        row_T = modulation.row_of_token
        following = (*modulation.blocks[1:], modulation.final)
        shift_RD, scale_RD = modulation.blocks[0].chunk(6, dim=-1)[:2]
        x_TD = self.x_embedder(tokens_TK)
        normed_TD = layer_norm_modulate(x_TD, shift_RD, scale_RD, row_T)
        for block, own, after in zip(self.blocks, modulation.blocks, following, strict=True):
            x_TD, normed_TD = block(x_TD, normed_TD, own, after, row_T, layout)
        return self.final_layer(normed_TD)

    def initialize(self) -> None:
        """Fresh weights as FiTv2 starts training: Xavier, and zero wherever a gate must be shut."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        nn.init.normal_(linear_at(self.t_embedder.mlp, 0).weight, std=0.02)
        nn.init.normal_(linear_at(self.t_embedder.mlp, 2).weight, std=0.02)
        zeroed = [up for _, up in self.low_rank_modulations()]
        zeroed += [
            linear_at(layers, 1)
            for layers in (self.global_adaLN_modulation, self.final_layer.adaLN_modulation)
        ]
        for layer in [*zeroed, self.final_layer.linear]:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
