"""Next-DiT, class-conditional: norms on both sides of each half, tanh gates, 2-D RoPE.

Readable beside the paper (arXiv:2406.18583, §2.1); state-dict names are those of the released
files. Any grid will do, and grids of one pack may differ.

Dimension key: T packed tokens, S sequences, R modulation rows, M width of the condition, K token
channels, P channels of a token's prediction.
"""

from __future__ import annotations

from torch import Tensor, nn

from fit_models.layers import LabelEmbedder, TimestepEmbedder, conditioning_activation
from fit_models.modulation_rows import Modulation
from fit_models.networks.lumina_blocks import ImageNetSandwichBlock, modulation_of, run_blocks
from fit_models.networks.lumina_layers import LuminaFinalLayer, Surroundings
from fit_models.networks.next_dit_config import NextDiTConfig
from fit_models.packing import PackedLayout


class NextDiT(nn.Module):
    """Packed tokens, batch description, timesteps and labels in; packed velocity out."""

    def __init__(self, config: NextDiTConfig) -> None:
        super().__init__()
        self.config = config
        self.x_embedder = nn.Linear(config.token_channels, config.hidden_size)
        self.t_embedder = TimestepEmbedder(config.condition_size)
        self.y_embedder = LabelEmbedder(config.num_classes, config.condition_size)
        self.layers = nn.ModuleList(ImageNetSandwichBlock(config) for _ in range(config.depth))
        self.final_layer = LuminaFinalLayer(config)

    def condition(self, timestep_R: Tensor, label_R: Tensor) -> Tensor:
        """Activated conditioning vector [R, M] that every adaLN projection reads."""
        return conditioning_activation(self.t_embedder(timestep_R) + self.y_embedder(label_R))

    def modulate(self, timestep_S: Tensor, label_S: Tensor, layout: PackedLayout) -> Modulation:
        """One modulation row per sequence; weights of norms and tanh are folded into it."""
        condition_SM = self.condition(timestep_S, label_S)
        return modulation_of(self.layers, self.final_layer, condition_SM, layout.seq_of_token)

    def forward(
        self, tokens_TK: Tensor, layout: PackedLayout, timestep_S: Tensor, label_S: Tensor
    ) -> Tensor:
        """Predict the velocity (data - noise) of every token.

        Args:
            tokens_TK: noisy latent tokens of all sequences, end to end.
            layout: where each sequence lies, with `next_dit_config.position_tables`.
            timestep_S: t per sequence: 0 is noise, 1 is data.
            label_S: int64 class label per sequence; `config.null_label` for none.

        Returns:
            [T, K], same order.
        """
        return self.denoise(tokens_TK, layout, self.modulate(timestep_S, label_S, layout))

    def denoise(self, tokens_TK: Tensor, layout: PackedLayout, modulation: Modulation) -> Tensor:
        """The same, with modulation rows made elsewhere: [T, K] -> [T, K]."""
        x_TD = self.x_embedder(tokens_TK)
        return run_blocks(self.layers, self.final_layer, x_TD, modulation, Surroundings(layout))
