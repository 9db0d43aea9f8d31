"""Lumina-T2I: Flag-DiT that draws what a caption says, with a token at the end of every line.

Readable beside the paper (arXiv:2405.05945); state-dict names are those of the released files. The
line ends are the network's own business: packs and layouts have a picture's tokens only.

Dimension key: T packed tokens, S sequences, R modulation rows, D width, M width of the condition,
K token channels, Y packed caption tokens, C channels of the language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from fit_models.captions import CaptionStates
from fit_models.layers import TimestepEmbedder, conditioning_activation
from fit_models.modulation_rows import Modulation
from fit_models.networks.lumina_blocks import FlagBlock, modulation_of, run_blocks
from fit_models.networks.lumina_layers import LuminaFinalLayer
from fit_models.networks.lumina_lines import lines_of
from fit_models.networks.lumina_t2i_config import LuminaT2IConfig
from fit_models.networks.lumina_text import caption_embedder, caption_states, surroundings_of
from fit_models.packing import PackedLayout


class LuminaT2I(nn.Module):
    """Packed tokens, batch description, timesteps and captions in; packed velocity out."""

    def __init__(self, config: LuminaT2IConfig) -> None:
        super().__init__()
        self.config = config
        self.x_embedder = nn.Linear(config.token_channels, config.hidden_size)
        self.t_embedder = TimestepEmbedder(config.condition_size)
        self.cap_embedder = caption_embedder(config)
        self.eol_token = nn.Parameter(torch.zeros(config.hidden_size))
        # What padding is filled with in the original; a pack has none.
        self.pad_token = nn.Parameter(torch.zeros(config.hidden_size))
        self.layers = nn.ModuleList(
            FlagBlock(config, config.caption_channels) for _ in range(config.depth)
        )
        self.final_layer = LuminaFinalLayer(config)

    def caption_states(self, features_YC: Tensor, lengths: Sequence[int]) -> CaptionStates:
        """All that depends on captions alone: see `fit_models.networks.lumina_text`."""
        return caption_states(self.cap_embedder, self.layers, features_YC, lengths)

    def condition(self, timestep_R: Tensor, pooled_RM: Tensor) -> Tensor:
        """Activated conditioning vector [R, M]; a caption's `pooled` stands where labels would."""
        return conditioning_activation(self.t_embedder(timestep_R) + pooled_RM)

    def modulate(self, timestep_S: Tensor, pooled_SM: Tensor, layout: PackedLayout) -> Modulation:
        """One modulation row per sequence; weights of norms are folded into it."""
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
            tokens_TK: noisy latent tokens of all sequences, end to end, without line ends.
            layout: where each sequence lies, with its grids, and with
                `lumina_t2i_config.position_tables`.
            timestep_S: t per sequence: 0 is noise, 1 is data.
            captions: one per sequence, in order; for guidance the other branch has that of the
                negative prompt.

        Returns:
            [T, K], same order.

        Raises:
            ValueError: there are not as many captions as sequences, or the layout has no grids.
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
        lines = lines_of(layout, self.config)
        row_U = modulation.row_of_token.index_select(0, lines.source_U)
        x_UD = lines.with_ends(self.x_embedder(tokens_TK), self.eol_token)
        around = surroundings_of(lines.layout, captions, self.config)
        rows = replace(modulation, row_of_token=row_U)
        out_UK = run_blocks(self.layers, self.final_layer, x_UD, rows, around, captions)
        return lines.without_ends(out_UK)
