"""Layers of the FiT family, with the names of the released checkpoints.

Knows shapes and formulas; not compilation, caches, devices or precision tricks.
Sources: DiT (arXiv:2212.09748), FiTv2 (arXiv:2410.13925).

Dimension key: T packed tokens, S sequences, R modulation rows, D width, H heads, E head dim,
F MLP width, K token channels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fit_kernels import (
    attention_varlen,
    gated_residual_layer_norm_modulate,
    qk_norm_rope,
    swiglu,
)
from fit_models.packing import PackedLayout

FREQUENCY_CHANNELS = 256


def timestep_features(timestep_S: Tensor) -> Tensor:
    """Sinusoidal features of the timestep, cosines first: fp32 [S, 256] (arXiv:2212.09748)."""
    half = FREQUENCY_CHANNELS // 2
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float32) / half).to(
        timestep_S.device
    )
    angles = timestep_S.float()[:, None] * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def linear_at(layers: nn.Sequential, index: int) -> nn.Linear:
    """The linear layer at a place of a sequence that is known to hold one there."""
    layer = layers[index]
    assert isinstance(layer, nn.Linear), (index, layer)
    return layer


class PatchEmbedder(nn.Module):
    """Token channels to width."""

    def __init__(self, token_channels: int, hidden_size: int) -> None:
        super().__init__()
        self.proj = nn.Linear(token_channels, hidden_size)

    def forward(self, tokens_TK: Tensor) -> Tensor:
        """[T, K] -> [T, D]."""
        return self.proj(tokens_TK)


class TimestepEmbedder(nn.Module):
    """Timestep to width through a two-layer MLP."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(FREQUENCY_CHANNELS, hidden_size),
            nn.SiLU(),
            nn.Linear(hidden_size, hidden_size),
        )

    def forward(self, timestep_S: Tensor) -> Tensor:
        """[S] -> [S, D]."""
        return self.mlp(timestep_features(timestep_S).to(linear_at(self.mlp, 0).weight.dtype))


class LabelEmbedder(nn.Module):
    """Class label to width; the last row is the null label."""

    def __init__(self, num_classes: int, hidden_size: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, hidden_size)

    def forward(self, label_S: Tensor) -> Tensor:
        """[S] -> [S, D]."""
        return self.embedding_table(label_S)


def attend(q_THE: Tensor, k_THE: Tensor, v_THE: Tensor, layout: PackedLayout) -> Tensor:
    """Softmax attention inside each sequence, [T, H, E]; all that asks a layout for lengths."""
    return attention_varlen(q_THE, k_THE, v_THE, layout.cu_seqlens, layout.runs, layout.max_length)


class Attention(nn.Module):
    """Self-attention inside each packed sequence, with QK-norm and 2-D RoPE."""

    attend = staticmethod(attend)

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x_TD: Tensor, layout: PackedLayout) -> Tensor:
        """[T, D] -> [T, D]."""
        qkv_TXE = self.qkv(x_TD).unflatten(-1, (3 * self.num_heads, -1))
        q_THE, k_THE, v_THE = qk_norm_rope(
            qkv_TXE,
            layout.rope_cos,
            layout.rope_sin,
            layout.rope_row,
            num_heads=self.num_heads,
            norm="layer",
        )
        return self.proj(self.attend(q_THE, k_THE, v_THE, layout).flatten(1))


class SwiGLU(nn.Module):
    """The gated MLP; `fc1_g` is the gate. `fit_models.joined` lays both out as one for serving."""

    def __init__(self, hidden_size: int, mlp_hidden: int) -> None:
        super().__init__()
        self.fc1_g = nn.Linear(hidden_size, mlp_hidden)
        self.fc1_x = nn.Linear(hidden_size, mlp_hidden)
        self.fc2 = nn.Linear(mlp_hidden, hidden_size)

    def forward(self, x_TD: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        weight = torch.cat((self.fc1_g.weight, self.fc1_x.weight))
        bias = torch.cat((self.fc1_g.bias, self.fc1_x.bias))
        return self.fc2(swiglu(F.linear(x_TD, weight, bias)))


class Block(nn.Module):
    """Attention and MLP, each behind adaLN and a gate; the modulation comes from outside."""

    def __init__(self, hidden_size: int, num_heads: int, mlp_hidden: int, lora_dim: int) -> None:
        super().__init__()
        self.attn = Attention(hidden_size, num_heads)
        self.mlp = SwiGLU(hidden_size, mlp_hidden)
        # Two linear maps with nothing between: a low-rank D -> 6D (FiTv2 §3.2).
        self.adaLN_modulation = nn.Sequential(
            nn.SiLU(), nn.Linear(hidden_size, lora_dim), nn.Linear(lora_dim, 6 * hidden_size)
        )

    def forward(
        self,
        x_TD: Tensor,
        normed_TD: Tensor,
        modulation_R6D: Tensor,
        following_RM: Tensor,
        row_T: Tensor,
        layout: PackedLayout,
    ) -> tuple[Tensor, Tensor]:
        """Advance the residual stream; norms are taken where the stream is last written.

        Args:
            x_TD: the residual stream.
            normed_TD: the stream normalised and modulated by this block's first shift and scale.
            modulation_R6D: one row of six vectors per distinct (timestep, label).
            following_RM: rows of the next block, or of the final layer: they begin with the shift
                and the scale of the norm after this block.
            row_T: each token's row.
            layout: where each sequence lies.

        Returns:
            the stream, and the stream normalised and modulated for what follows, each [T, D].
        """
        _, _, gate1, shift2, scale2, gate2 = modulation_R6D.chunk(6, dim=-1)
        width = x_TD.shape[-1]
        shift3, scale3 = following_RM[:, :width], following_RM[:, width : 2 * width]
        y_TD = self.attn(normed_TD, layout)
        x_TD, normed_TD = gated_residual_layer_norm_modulate(
            x_TD, y_TD, gate1, shift2, scale2, row_T
        )
        y_TD = self.mlp(normed_TD)
        return gated_residual_layer_norm_modulate(x_TD, y_TD, gate2, shift3, scale3, row_T)


class FinalLayer(nn.Module):
    """Width back to token channels."""

    def __init__(self, hidden_size: int, out_channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 2 * hidden_size))

    def forward(self, normed_TD: Tensor) -> Tensor:
        """[T, D], normalised and modulated by the last block -> [T, K]."""
        return self.linear(normed_TD)


def shifted_timestep(timestep_S: Tensor, time_shifting: float) -> Tensor:
    """FiTv2's t' = min(s t / (1 + (s - 1) t), 1); solvers may overshoot t = 1."""
    t = timestep_S.float()
    return (time_shifting * t / (1.0 + (time_shifting - 1.0) * t)).clamp(max=1.0)


def conditioning_activation(condition_RD: Tensor) -> Tensor:
    """The SiLU in front of every adaLN projection, once for all of them."""
    return F.silu(condition_RD)
