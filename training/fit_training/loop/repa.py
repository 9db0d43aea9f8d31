"""Representation alignment: inner tokens are pulled towards the features of a trained network.

Source: REPA (arXiv:2410.06940). The features come prepared with the latents; the head is thrown
away after training.

Dimension key: T packed tokens, D width, A feature channels.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class AlignmentHead(nn.Module):
    """A two-layer MLP from a block's tokens to feature space."""

    def __init__(self, hidden_size: int, feature_channels: int) -> None:
        super().__init__()
        inner = 2 * hidden_size
        self.mlp = nn.Sequential(
            nn.Linear(hidden_size, inner), nn.SiLU(), nn.Linear(inner, feature_channels)
        )

    def forward(self, hidden_TD: Tensor) -> Tensor:
        """[T, D] -> [T, A]."""
        return self.mlp(hidden_TD)


def alignment_loss(projected_TA: Tensor, features_TA: Tensor) -> Tensor:
    """One minus the mean cosine similarity over tokens, a scalar in 0..2."""
    return 1.0 - F.cosine_similarity(projected_TA.float(), features_TA, dim=-1).mean()
