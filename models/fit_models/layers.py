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

from fit_kernels import attention_varlen, gated_residual, layer_norm_modulate, qk_norm_rope, swiglu
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


class Attention(nn.Module):
    """Self-attention inside each packed sequence, with QK-norm and 2-D RoPE."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x_TD: Tensor, layout: PackedLayout) -> Tensor:
        """[T, D] -> [T, D]."""
        qkv_T3HE = self.qkv(x_TD).unflatten(-1, (3, self.num_heads, -1))
        q_THE, k_THE, v_THE = qk_norm_rope(
            qkv_T3HE, layout.rope_cos, layout.rope_sin, layout.rope_row, qk_norm=True
        )
        out_THE = attention_varlen(q_THE, k_THE, v_THE, layout.runs)
        return self.proj(out_THE.flatten(1))


class SwiGLU(nn.Module):
    """The gated MLP; `fc1_g` is the gate."""

    def __init__(self, hidden_size: int, mlp_hidden: int) -> None:
        super().__init__()
        self.fc1_g = nn.Linear(hidden_size, mlp_hidden)
        self.fc1_x = nn.Linear(hidden_size, mlp_hidden)
        self.fc2 = nn.Linear(mlp_hidden, hidden_size)

    def forward(self, x_TD: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        return self.fc2(swiglu(self.fc1_g(x_TD), self.fc1_x(x_TD)))


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
        self, x_TD: Tensor, modulation_R6D: Tensor, row_T: Tensor, layout: PackedLayout
    ) -> Tensor:
        """[T, D] -> [T, D], with one row of six vectors per distinct (timestep, label)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation_R6D.chunk(6, dim=-1)
        y_TD = self.attn(layer_norm_modulate(x_TD, shift1, scale1, row_T), layout)
        x_TD = gated_residual(x_TD, y_TD, gate1, row_T)
        y_TD = self.mlp(layer_norm_modulate(x_TD, shift2, scale2, row_T))
        return gated_residual(x_TD, y_TD, gate2, row_T)


class FinalLayer(nn.Module):
    """Width back to token channels."""

    def __init__(self, hidden_size: int, out_channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 2 * hidden_size))

    def forward(self, x_TD: Tensor, modulation_R2D: Tensor, row_T: Tensor) -> Tensor:
        """[T, D] -> [T, K]."""
        shift, scale = modulation_R2D.chunk(2, dim=-1)
        return self.linear(layer_norm_modulate(x_TD, shift, scale, row_T))


def shifted_timestep(timestep_S: Tensor, time_shifting: float) -> Tensor:
    """FiTv2's t' = min(s t / (1 + (s - 1) t), 1); solvers may overshoot t = 1."""
    t = timestep_S.float()
    return (time_shifting * t / (1.0 + (time_shifting - 1.0) * t)).clamp(max=1.0)


def conditioning_activation(condition_RD: Tensor) -> Tensor:
    """The SiLU in front of every adaLN projection, once for all of them."""
    return F.silu(condition_RD)
