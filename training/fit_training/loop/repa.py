"""Representation alignment: inner tokens are pulled towards the features of a trained network.

Source: REPA (arXiv:2410.06940). The features come prepared with the latents; the head is thrown
away after training. Without features (zero channels) there is no head and the loss is 0.

Dimension key: T packed tokens, D width, A feature channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class AlignmentHead(nn.Module):
    """A two-layer MLP from a block's tokens to feature space; to no channels, nothing."""

    def __init__(self, hidden_size: int, feature_channels: int) -> None:
        super().__init__()
        self.mlp = None
        if not feature_channels:
            return
        inner = 2 * hidden_size
        self.mlp = nn.Sequential(
            nn.Linear(hidden_size, inner), nn.SiLU(), nn.Linear(inner, feature_channels)
        )

    def forward(self, hidden_TD: Tensor) -> Tensor:
        """[T, D] -> [T, A]."""
        return hidden_TD[:, :0] if self.mlp is None else self.mlp(hidden_TD)


def alignment_loss(projected_TA: Tensor, features_TA: Tensor) -> Tensor:
    """One minus the mean cosine similarity over tokens, a scalar in 0..2; 0 without a head."""
    if not projected_TA.shape[1]:
        return projected_TA.new_zeros((), dtype=torch.float32)
    return 1.0 - F.cosine_similarity(projected_TA.float(), features_TA, dim=-1).mean()


def aligned_channels(feature_channels: int, alignment_weight: float, data: str) -> int:
    """Return the channels a head needs: those of the features, none for a weight of 0.

    Raises `ValueError` when the folder `data` holds no features and the weight asks for some.
    """
    if not alignment_weight:
        return 0
    if not feature_channels:
        raise ValueError(
            f"alignment_weight is {alignment_weight}, but {data} holds no features; "
            "set alignment_weight=0 or prepare with --feature-network"
        )
    return feature_channels
