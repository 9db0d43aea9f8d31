"""DiT: the diffusion transformer with adaLN-Zero and sine-cosine positions; SiT is the same.

Readable beside the paper (arXiv:2212.09748); state-dict names are those of the released files. The
originals put channels fastest in the tokens they return; here they come out in our one order
(`fit_models.patches`), the variance's channels after the noise's. SiT (arXiv:2401.08740) has the
variance's channels and drops them.

Dimension key: T packed tokens, S sequences, R modulation rows, D width, H heads, E head dim,
K token channels, P channels of a token's prediction.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from fit_models.adaln_block import (
    AdaLNBlock,
    GeluMlp,
    adaln_projection,
    full_modulation,
    run_blocks,
)
from fit_models.conv_patches import ConvPatchEmbedder
from fit_models.layers import (
    FREQUENCY_CHANNELS,
    FinalLayer,
    LabelEmbedder,
    TimestepEmbedder,
    attend,
    conditioning_activation,
    linear_at,
)
from fit_models.modulation_rows import Modulation
from fit_models.networks.dit_config import DiTConfig
from fit_models.packing import PackedLayout
from fit_models.sincos import sincos_table

# Stored tables may be in bf16, which is this far from 1 at most.
_POSITION_TOLERANCE = 1e-2


class DividedTimestepEmbedder(TimestepEmbedder):
    """Timestep to width with a divisor of its own in the frequencies 10000^(-k / divisor)."""

    def __init__(self, hidden_size: int, divisor: int) -> None:
        super().__init__(hidden_size)
        self.divisor = divisor

    def features(self, timestep_S: Tensor) -> Tensor:
        """Sinusoidal features, cosines first: fp32 [S, 256]."""
        k = torch.arange(FREQUENCY_CHANNELS // 2, dtype=torch.float32)
        frequencies = torch.exp(-math.log(10000.0) * k / self.divisor).to(timestep_S.device)
        angles = timestep_S.float()[:, None] * frequencies
        return torch.cat((angles.cos(), angles.sin()), dim=-1)

    def forward(self, timestep_S: Tensor) -> Tensor:
        """[S] -> [S, D]."""
        return self.mlp(self.features(timestep_S).to(linear_at(self.mlp, 0).weight.dtype))


class PlainAttention(nn.Module):
    """Self-attention inside each packed sequence, without norms or rotations of q and k."""

    attend = staticmethod(attend)

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x_TD: Tensor, layout: PackedLayout) -> Tensor:
        """[T, D] -> [T, D]."""
        q_THE, k_THE, v_THE = self.qkv(x_TD).unflatten(-1, (3, self.num_heads, -1)).unbind(1)
        return self.proj(self.attend(q_THE, k_THE, v_THE, layout).flatten(1))


class DiT(nn.Module):
    """Packed tokens, batch description, timesteps and labels in; packed prediction out."""

    pos_embed: Tensor

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        width, grid = config.hidden_size, config.trained_grid
        self.x_embedder = ConvPatchEmbedder(config.in_channels, config.patch_size, width)
        self.t_embedder = DividedTimestepEmbedder(width, config.frequency_divisor)
        self.y_embedder = LabelEmbedder(config.num_classes, width)
        # Released files hold the trained grid's table. Positions come with the layout; this one
        # is there to be checked, so that a learned table is not taken for the closed form.
        self.register_buffer("pos_embed", sincos_table(grid, grid, width)[None])
        self.blocks = nn.ModuleList(
            AdaLNBlock(
                width,
                PlainAttention(width, config.num_heads),
                GeluMlp(width, config.mlp_hidden),
                config.mlp_norm_eps,
            )
            for _ in range(config.depth)
        )
        self.final_layer = FinalLayer(width, config.final_channels * config.patch_size**2)
        self.register_load_state_dict_post_hook(_check_positions)

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
        """Predict the noise and where the variance lies in its range, or the velocity.

        Args:
            tokens_TK: noisy latent tokens of all sequences, end to end.
            layout: where each sequence lies; `rope_cos` holds the rows that are added to embedded
                tokens (`fit_models.networks.dit_config.position_tables`).
            timestep_S: DiT's index 0..999 into the trained noise path, or SiT's t in [0, 1].
            label_S: int64 class label per sequence; `config.null_label` for none.

        Returns:
            [T, P], same order: DiT's noise [K] then variance [K]; SiT's velocity [K].
        """
        return self.denoise(tokens_TK, layout, self.modulate(timestep_S, label_S, layout))

    def denoise(self, tokens_TK: Tensor, layout: PackedLayout, modulation: Modulation) -> Tensor:
        """The same, with modulation rows made elsewhere: [T, K] -> [T, P]."""
        x_TD = self.x_embedder(tokens_TK)
        x_TD = x_TD + layout.rope_cos.index_select(0, layout.rope_row).to(x_TD.dtype)
        normed_TD = run_blocks(self.blocks, x_TD, modulation, layout)
        return self.channels_slowest(self.final_layer(normed_TD))

    def channels_slowest(self, final_TX: Tensor) -> Tensor:
        """From (row, column, channel) to our order, without channels nobody reads: [T, P]."""
        config = self.config
        by_channel = final_TX.unflatten(-1, (config.patch_size**2, -1)).transpose(1, 2)
        return by_channel[:, : config.output_channels // config.patch_size**2].flatten(1)

    def initialize(self) -> None:
        """Fresh weights as DiT starts training: Xavier, and zero wherever a gate must be shut."""
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


def _check_positions(network: nn.Module, _keys_that_did_not_fit: Any) -> None:
    """Refuse weights whose positions were learned: regenerating them would be another network.

    Raises:
        ValueError: the loaded table is not the closed form.
    """
    assert isinstance(network, DiT), network
    loaded = network.pos_embed
    if loaded.is_meta:
        return
    grid, width = network.config.trained_grid, network.config.hidden_size
    difference = (loaded[0].float().cpu() - sincos_table(grid, grid, width)).abs().max().item()
    if not difference <= _POSITION_TOLERANCE:
        raise ValueError(
            f"weights: pos_embed differs by {difference:.3g} from the sine-cosine table of a "
            f"{grid}x{grid} grid; learned positions are another family's (MDT)"
        )
