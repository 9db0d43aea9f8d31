"""Flag-DiT, class-conditional, and Large-DiT: LLaMA's layers with adaLN and 1-D RoPE.

Readable beside the paper (arXiv:2405.05945); state-dict names are those of the released files.
Large-DiT is the same network under DiT's process. There is no end-of-line token here; the
text-to-image model has them (`fit_models.networks.lumina_t2i`).

Dimension key: T packed tokens, S sequences, R modulation rows, M width of the condition, K token
channels, P channels of a token's prediction.
"""

from __future__ import annotations

from torch import Tensor, nn

from fit_models.layers import LabelEmbedder, TimestepEmbedder, conditioning_activation
from fit_models.modulation_rows import Modulation
from fit_models.networks.flag_dit_config import FlagDiTConfig
from fit_models.networks.lumina_blocks import FlagBlock, modulation_of, run_blocks
from fit_models.networks.lumina_layers import LuminaFinalLayer, Surroundings
from fit_models.packing import PackedLayout


class FlagDiT(nn.Module):
    """Packed tokens, batch description, timesteps and labels in; packed predictions out."""

    def __init__(self, config: FlagDiTConfig) -> None:
        super().__init__()
        self.config = config
        self.x_embedder = nn.Linear(config.token_channels, config.hidden_size)
        self.t_embedder = TimestepEmbedder(config.condition_size)
        self.y_embedder = LabelEmbedder(config.num_classes, config.condition_size)
        self.layers = nn.ModuleList(FlagBlock(config) for _ in range(config.depth))
        self.final_layer = LuminaFinalLayer(config)

    def condition(self, timestep_R: Tensor, label_R: Tensor) -> Tensor:
        """Activated conditioning vector [R, M] that every adaLN projection reads."""
        return conditioning_activation(self.t_embedder(timestep_R) + self.y_embedder(label_R))

    def modulate(self, timestep_S: Tensor, label_S: Tensor, layout: PackedLayout) -> Modulation:
        """One modulation row per sequence; weights of norms are folded into it."""
        condition_SM = self.condition(timestep_S, label_S)
        return modulation_of(self.layers, self.final_layer, condition_SM, layout.seq_of_token)

    def forward(
        self, tokens_TK: Tensor, layout: PackedLayout, timestep_S: Tensor, label_S: Tensor
    ) -> Tensor:
        """Predict the velocity (data - noise) of every token, or its noise and variance.

        Args:
            tokens_TK: noisy latent tokens of all sequences, end to end.
            layout: where each sequence lies, with `flag_dit_config.position_tables`.
            timestep_S: Flag-DiT's t per sequence, 0 is noise and 1 is data; Large-DiT's timestep
                0..999.
            label_S: int64 class label per sequence; `config.null_label` for none.

        Returns:
            [T, P], same order; Large-DiT's variance is the second half of the channels.
        """
        return self.denoise(tokens_TK, layout, self.modulate(timestep_S, label_S, layout))

    def denoise(self, tokens_TK: Tensor, layout: PackedLayout, modulation: Modulation) -> Tensor:
        """The same, with modulation rows made elsewhere: [T, K] -> [T, P]."""
        x_TD = self.x_embedder(tokens_TK)
        return run_blocks(self.layers, self.final_layer, x_TD, modulation, Surroundings(layout))
