"""DiffiT in latent space: time and label enter through attention's projections, nowhere else.

Readable beside the paper (arXiv:2312.02139, "time-dependent multihead self-attention");
state-dict names are those of the released files. Time adds one vector per sequence to queries, keys
and values; what it adds to keys moves all scores of a query alike and softmax drops it, so it is
not computed.

Dimension key: T packed tokens, S sequences, R modulation rows, D width, K token channels,
P channels of a prediction.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fit_kernels import gather_rows
from fit_models.adaln_block import NORM_EPS, GeluMlp
from fit_models.channel_order import channels_slowest
from fit_models.conv_patches import ConvPatchEmbedder
from fit_models.layers import LabelEmbedder, TimestepEmbedder
from fit_models.modulation_rows import Modulation
from fit_models.networks.diffit_config import DiffiTConfig
from fit_models.packing import PackedLayout
from fit_models.relative_bias import (
    GridRun,
    accept_index,
    attend_with_bias,
    grid_runs,
    new_bias_table,
)
from fit_models.sincos import sincos_table

# Stored tables may be in bf16, which is this far from 1 at most.
_POSITION_TOLERANCE = 1e-2


class TimeDependentAttention(nn.Module):
    """Self-attention inside each sequence, with a bias for each offset and time in q and v."""

    def __init__(self, config: DiffiTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads, self.side = config.num_heads, config.side
        self.qkv = nn.Linear(width, 3 * width)
        self.qkv_temb = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.relative_position_bias_table = new_bias_table(config.side, config.num_heads)
        accept_index(self, config.side)

    def modulate(self, condition_RD: Tensor) -> Tensor:
        """What time and label add to the queries, then to the values: [R, 2 D]."""
        query_RD, _, value_RD = self.qkv_temb(condition_RD).chunk(3, dim=1)
        return torch.cat((query_RD, value_RD), dim=1)

    def forward(
        self, x_TD: Tensor, modulation_R2D: Tensor, row_T: Tensor, runs: tuple[GridRun, ...]
    ) -> Tensor:
        """[T, D] -> [T, D]; the rows are `modulate`'s."""
        q_TD, k_TD, v_TD = self.qkv(x_TD).chunk(3, dim=1)
        query_RD, value_RD = modulation_R2D.chunk(2, dim=1)
        q_TD = q_TD + gather_rows(query_RD, row_T)
        v_TD = v_TD + gather_rows(value_RD, row_T)
        q_THE, k_THE, v_THE = (x.unflatten(1, (self.num_heads, -1)) for x in (q_TD, k_TD, v_TD))
        table_LH = self.relative_position_bias_table
        out_THE = attend_with_bias(q_THE, k_THE, v_THE, runs, table_LH, self.side)
        return self.proj(out_THE.flatten(1))


class DiffiTBlock(nn.Module):
    """Attention and MLP behind plain norms: no scale, no shift, no gate."""

    def __init__(self, config: DiffiTConfig) -> None:
        super().__init__()
        self.attn = TimeDependentAttention(config)
        self.mlp = GeluMlp(config.hidden_size, config.mlp_hidden)

    def forward(
        self, x_TD: Tensor, modulation_R2D: Tensor, row_T: Tensor, runs: tuple[GridRun, ...]
    ) -> Tensor:
        """Advance the residual stream, [T, D].

        Args:
            x_TD: the stream.
            modulation_R2D: `TimeDependentAttention.modulate`'s rows.
            row_T: each token's row.
            runs: where the grids lie.
        """
        x_TD = x_TD + self.attn(_normed(x_TD), modulation_R2D, row_T, runs)
        return x_TD + self.mlp(_normed(x_TD))


class DiffiTFinalLayer(nn.Module):
    """Width back to token channels, behind a norm and SiLU; nothing conditions it."""

    def __init__(self, hidden_size: int, out_channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, out_channels)

    def forward(self, x_TD: Tensor) -> Tensor:
        """[T, D] -> [T, P]."""
        return self.linear(F.silu(_normed(x_TD)))


class DiffiT(nn.Module):
    """Packed noisy tokens, batch description, timesteps and labels in; packed noise out."""

    pos_embed: Tensor

    def __init__(self, config: DiffiTConfig) -> None:
        super().__init__()
        self.config = config
        width, side = config.hidden_size, config.side
        self.x_embedder = ConvPatchEmbedder(config.in_channels, config.patch_size, width)
        self.t_embedder = TimestepEmbedder(width)
        self.y_embedder = LabelEmbedder(config.num_classes, width)
        # Released files hold this table; positions come with the layout, so it is only checked.
        self.register_buffer("pos_embed", sincos_table(side, side, width)[None])
        self.blocks = nn.ModuleList(DiffiTBlock(config) for _ in range(config.depth))
        self.final_layer = DiffiTFinalLayer(width, config.output_channels)
        self.register_load_state_dict_post_hook(_check_positions)

    def condition(self, timestep_R: Tensor, label_R: Tensor) -> Tensor:
        """Conditioning vector [R, D] that every block projects as it is, without activation."""
        return self.t_embedder(timestep_R) + self.y_embedder(label_R)

    def modulate(self, timestep_S: Tensor, label_S: Tensor, layout: PackedLayout) -> Modulation:
        """One row per sequence: per block [S, 2 D] for queries and values; no final rows."""
        condition_SD = self.condition(timestep_S, label_S)
        blocks = []
        for block in self.blocks:
            assert isinstance(block, DiffiTBlock)
            blocks.append(block.attn.modulate(condition_SD))
        return Modulation(tuple(blocks), condition_SD[:, :0], layout.seq_of_token)

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
        row_T, runs = modulation.row_of_token, grid_runs(layout)
        x_TD = self.x_embedder(tokens_TK)
        x_TD = x_TD + layout.rope_cos.index_select(0, layout.rope_row).to(x_TD.dtype)
        for block, modulation_R2D in zip(self.blocks, modulation.blocks, strict=True):
            x_TD = block(x_TD, modulation_R2D, row_T, runs)
        return channels_slowest(self.final_layer(x_TD), self.config.patch_size)


def _normed(x_TD: Tensor) -> Tensor:
    return F.layer_norm(x_TD, x_TD.shape[-1:], eps=NORM_EPS)


def _check_positions(network: nn.Module, _keys_that_did_not_fit: Any) -> None:
    """Refuse weights whose table is not the closed form that layouts are made with.

    Raises:
        ValueError: it is another.
    """
    assert isinstance(network, DiffiT), network
    loaded, side = network.pos_embed, network.config.side
    if loaded.is_meta:
        return
    table = sincos_table(side, side, network.config.hidden_size)
    difference = (loaded[0].float().cpu() - table).abs().max().item()
    if not difference <= _POSITION_TOLERANCE:
        raise ValueError(
            f"weights: pos_embed differs by {difference:.3g} from the sine-cosine table of a "
            f"{side}x{side} grid"
        )
