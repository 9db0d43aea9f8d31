"""Lumina-Next: Next-DiT that draws what a caption says.

Readable beside the paper (arXiv:2406.18583); state-dict names are those of the released files from
2024-05-31 on. Text comes in as states of a language model, and all that is computed from them
alone is computed once, by `caption_states`.

Dimension key: T packed tokens, S sequences, R modulation rows, D width, M width of the condition,
K token channels, Y packed caption tokens, C channels of the language model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fit_models.captions import CaptionStates
from fit_models.layers import TimestepEmbedder, conditioning_activation
from fit_models.modulation_rows import Modulation
from fit_models.networks.lumina_blocks import TextSandwichBlock, modulation_of, run_blocks
from fit_models.networks.lumina_layers import LuminaFinalLayer
from fit_models.networks.lumina_next_config import LuminaNextConfig
from fit_models.networks.lumina_text import (
    caption_embedder,
    caption_states,
    surroundings_of,
)
from fit_models.packing import PackedLayout


class LuminaNext(nn.Module):
    """Packed tokens, batch description, timesteps and captions in; packed velocity out."""

    def __init__(self, config: LuminaNextConfig) -> None:
        super().__init__()
        self.config = config
        self.x_embedder = nn.Linear(config.token_channels, config.hidden_size)
        self.t_embedder = TimestepEmbedder(config.condition_size)
        self.cap_embedder = caption_embedder(config)
        # What padding is filled with in the original; a pack has none.
        self.pad_token = nn.Parameter(torch.zeros(config.hidden_size))
        self.layers = nn.ModuleList(
            TextSandwichBlock(config, config.caption_channels) for _ in range(config.depth)
        )
        self.final_layer = LuminaFinalLayer(config, has_shift=False)

    def caption_states(self, features_YC: Tensor, lengths: Sequence[int]) -> CaptionStates:
        """All that depends on captions alone: see `fit_models.networks.lumina_text`."""
        return caption_states(self.cap_embedder, self.layers, features_YC, lengths)

    def condition(self, timestep_R: Tensor, pooled_RM: Tensor) -> Tensor:
        """Activated conditioning vector [R, M]; a caption's `pooled` stands where labels would."""
        return conditioning_activation(self.t_embedder(timestep_R) + pooled_RM)

    def modulate(self, timestep_S: Tensor, pooled_SM: Tensor, layout: PackedLayout) -> Modulation:
        """One modulation row per sequence; weights of norms and tanh are folded into it."""
        condition_SM = self.condition(timestep_S, pooled_SM)
        return modulation_of(self.layers, self.final_layer, condition_SM, layout.seq_of_token)

    def forward(
        self,
        tokens_TK: Tensor,
        layout: PackedLayout,
        timestep_S: Tensor,
        captions: CaptionStates,
    ) -> Tensor:
        """Predict the velocity (data - noise) of every token.

        Args:
            tokens_TK: noisy latent tokens of all sequences, end to end.
            layout: where each sequence lies, with `lumina_next_config.position_tables`.
            timestep_S: t per sequence: 0 is noise, 1 is data.
            captions: one per sequence, in order; for guidance the other branch has that of the
                negative prompt.

        Returns:
            [T, K], same order.

        Raises:
            ValueError: there are not as many captions as sequences.
        """
        modulation = self.modulate(timestep_S, captions.pooled, layout)
        return self.denoise(tokens_TK, layout, modulation, captions)

    def denoise(
        self,
        tokens_TK: Tensor,
        layout: PackedLayout,
        modulation: Modulation,
        captions: CaptionStates,
    ) -> Tensor:
        """The same, with modulation rows made elsewhere: [T, K] -> [T, K]."""
        x_TD = self.x_embedder(tokens_TK)
        around = surroundings_of(layout, captions, self.config)
        return run_blocks(self.layers, self.final_layer, x_TD, modulation, around, captions)
