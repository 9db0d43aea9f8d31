"""MDT: a DiT with a bias for each offset in its attention; version 2 adds long skips.

Readable beside the paper (arXiv:2303.14389); state-dict names are those of the released files.
What serves masked training alone, `sideblocks` and `mask_token`, is held and not run.

Dimension key: T packed tokens, S sequences, R modulation rows, D width, K token channels,
P channels of a prediction.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fit_kernels import gated_residual_layer_norm_modulate, gather_rows, layer_norm_modulate
from fit_models.adaln_block import GeluMlp, adaln_projection
from fit_models.channel_order import channels_slowest
from fit_models.conv_patches import ConvPatchEmbedder
from fit_models.layers import (
    FinalLayer,
    LabelEmbedder,
    TimestepEmbedder,
    conditioning_activation,
)
from fit_models.modulation_rows import Modulation
from fit_models.networks.mdt_config import UNUSED_BIAS_ROWS, MDTConfig
from fit_models.packing import PackedLayout
from fit_models.position_table import table_rows
from fit_models.relative_bias import (
    GridRun,
    accept_index,
    attend_with_bias,
    grid_runs,
    new_bias_table,
)
from fit_models.sincos import sincos_table


class RelativeBias(nn.Module):
    """The table of one block's attention."""

    def __init__(self, side: int, num_heads: int) -> None:
        super().__init__()
        self.relative_position_bias_table = new_bias_table(side, num_heads, UNUSED_BIAS_ROWS)
        accept_index(self, side)


class BiasedAttention(nn.Module):
    """Self-attention inside each sequence with a bias for each offset."""

    def __init__(self, config: MDTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads, self.side = config.num_heads, config.side
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.rel_pos_bias = RelativeBias(config.side, config.num_heads)

    def forward(self, x_TD: Tensor, runs: tuple[GridRun, ...]) -> Tensor:
        """[T, D] -> [T, D]."""
        q_THE, k_THE, v_THE = self.qkv(x_TD).unflatten(1, (3, self.num_heads, -1)).unbind(1)
        table_LH = self.rel_pos_bias.relative_position_bias_table
        return self.proj(
            attend_with_bias(q_THE, k_THE, v_THE, runs, table_LH, self.side).flatten(1)
        )


class MDTBlock(nn.Module):
    """DiT's adaLN-Zero block; with a skip, the stream first becomes one linear map of both."""

    def __init__(self, config: MDTConfig, skips: bool = False) -> None:
        super().__init__()
        width = config.hidden_size
        self.attn = BiasedAttention(config)
        self.mlp = GeluMlp(width, config.mlp_hidden)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.skip_linear = nn.Linear(2 * width, width) if skips else None

    def forward(
        self,
        x_TD: Tensor,
        skip_TD: Tensor | None,
        modulation_R6D: Tensor,
        row_T: Tensor,
        runs: tuple[GridRun, ...],
    ) -> Tensor:
        """Advance the residual stream, [T, D].

        Args:
            x_TD: the stream.
            skip_TD: the stream as it was further up; None for blocks without `skip_linear`.
            modulation_R6D: shift, scale and gate of attention, then of the MLP.
            row_T: each token's row.
            runs: where the grids lie.
        """
        if self.skip_linear is not None:
            assert skip_TD is not None
            x_TD = self.skip_linear(torch.cat((x_TD, skip_TD), dim=1))
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation_R6D.chunk(6, dim=1)
        y_TD = self.attn(layer_norm_modulate(x_TD, shift1, scale1, row_T), runs)
        x_TD, normed_TD = gated_residual_layer_norm_modulate(
            x_TD, y_TD, gate1, shift2, scale2, row_T
        )
        return torch.addcmul(x_TD, gather_rows(gate2, row_T), self.mlp(normed_TD))


class MDT(nn.Module):
    """Packed noisy tokens, batch description, timesteps and labels in; packed noise out."""

    def __init__(self, config: MDTConfig) -> None:
        super().__init__()
        self.config = config
        width, decoders = config.hidden_size, config.decode_layer
        encoders = config.depth - decoders
        self.x_embedder = ConvPatchEmbedder(config.in_channels, config.patch_size, width)
        self.t_embedder = TimestepEmbedder(width)
        self.y_embedder = LabelEmbedder(config.num_classes, width)
        table = sincos_table(config.side, config.side, width)[None]
        self.pos_embed = nn.Parameter(table)
        self.decoder_pos_embed = nn.Parameter(table.clone())
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.sideblocks = _blocks(config, 1)
        if config.version == 1:
            self.blocks = _blocks(config, config.depth)
        else:
            self.en_inblocks = _blocks(config, encoders // 2)
            self.en_outblocks = _blocks(config, encoders // 2, skips=True)
            self.de_blocks = _blocks(config, decoders, skips=True)
        self.final_layer = FinalLayer(width, config.output_channels)

    def encoders(self) -> tuple[list[MDTBlock], list[MDTBlock]]:
        """Blocks in front of the decoder: those that only push skips, those that pop them."""
        if self.config.version == 1:
            return _listed(self.blocks)[: self.config.depth - self.config.decode_layer], []
        return _listed(self.en_inblocks), _listed(self.en_outblocks)

    def decoders(self) -> list[MDTBlock]:
        """Blocks behind the second position table."""
        if self.config.version == 1:
            return _listed(self.blocks)[-self.config.decode_layer :]
        return _listed(self.de_blocks)

    def condition(self, timestep_R: Tensor, label_R: Tensor) -> Tensor:
        """Activated conditioning vector [R, D] that every adaLN projection reads."""
        return conditioning_activation(self.t_embedder(timestep_R) + self.y_embedder(label_R))

    def modulate(self, timestep_S: Tensor, label_S: Tensor, layout: PackedLayout) -> Modulation:
        """One modulation row per sequence, for each block in the order of running."""
        condition_SD = self.condition(timestep_S, label_S)
        inward, outward = self.encoders()
        blocks = tuple(
            adaln_projection(block)(condition_SD) for block in (*inward, *outward, *self.decoders())
        )
        final_S2D = adaln_projection(self.final_layer)(condition_SD)
        return Modulation(blocks, final_S2D, layout.seq_of_token)

    def forward(
        self, tokens_TK: Tensor, layout: PackedLayout, timestep_S: Tensor, label_S: Tensor
    ) -> Tensor:
        """Predict the noise of every token.

        Args:
            tokens_TK: noisy latent tokens of all sequences, end to end.
            layout: where each sequence lies; its slab holds `position_tables`, its grids are read.
            timestep_S: 0 ... 999 per sequence, high is noise.
            label_S: int64 class label per sequence; `config.null_label` for none.

        Returns:
            [T, P], same order: noise, then the variance values if they are learned.

        Raises:
            ValueError: the layout has no grids, or one is larger than the trained one.
        """
        return self.denoise(tokens_TK, layout, self.modulate(timestep_S, label_S, layout))

    def denoise(self, tokens_TK: Tensor, layout: PackedLayout, modulation: Modulation) -> Tensor:
        """The same, with modulation rows made elsewhere: [T, K] -> [T, P]."""
        row_T, runs, position_T = modulation.row_of_token, grid_runs(layout), table_rows(layout)
        rows = iter(modulation.blocks)
        inward, outward = self.encoders()
        embedded_TD = x_TD = self.x_embedder(tokens_TK) + self.pos_embed[0][position_T]
        skips = []
        for block in inward:
            x_TD = block(x_TD, None, next(rows), row_T, runs)
            skips.append(x_TD)
        for block in outward:
            x_TD = block(x_TD, skips.pop(), next(rows), row_T, runs)
        x_TD = x_TD + self.decoder_pos_embed[0][position_T]
        for block in self.decoders():
            x_TD = block(x_TD, embedded_TD, next(rows), row_T, runs)
        shift_RD, scale_RD = modulation.final.chunk(2, dim=1)
        normed_TD = layer_norm_modulate(x_TD, shift_RD, scale_RD, row_T)
        return channels_slowest(self.final_layer(normed_TD), self.config.patch_size)


def _blocks(config: MDTConfig, count: int, skips: bool = False) -> nn.ModuleList:
    return nn.ModuleList(MDTBlock(config, skips) for _ in range(count))


def _listed(blocks: nn.ModuleList) -> list[MDTBlock]:
    return [block for block in blocks if isinstance(block, MDTBlock)]
