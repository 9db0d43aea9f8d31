"""What a network has to offer to measure images with.

Knows the interface that measures and reports stand on. The networks behind it are in
`feature_networks.py` and `bundle_features.py`.

Dimension key: n images, C channels of a feature, K outputs of a classifier.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ImageFeatures:
    """What a network sees in n images, float32 on the host.

    Attributes:
        pooled: [n, C], for every measure.
        spatial: [n, ...] for sFID; None where the network has none that figures were published in.
        logits: [n, K] for the Inception Score; None as well.
    """

    pooled: Tensor
    spatial: Tensor | None = None
    logits: Tensor | None = None

    @staticmethod
    def joined(parts: Sequence[ImageFeatures]) -> ImageFeatures:
        """The parts one after the other, at least one."""
        assert parts, "no image to measure"
        spatial = [part.spatial for part in parts if part.spatial is not None]
        logits = [part.logits for part in parts if part.logits is not None]
        return ImageFeatures(
            torch.cat([part.pooled for part in parts]),
            torch.cat(spatial) if spatial else None,
            torch.cat(logits) if logits else None,
        )


class FeatureSource(ABC):
    """A network that measures. Figures compare only with figures of the same source."""

    name: str

    @abstractmethod
    def observe(self, images: Sequence[Tensor]) -> ImageFeatures:
        """All that the network has to say of uint8 images [3, height, width] of any sizes."""

    @abstractmethod
    def fingerprint(self) -> bytes:
        """Bytes that change with the weights."""

    def features(self, images: Sequence[Tensor]) -> Tensor:
        """Pooled features, float32 [n, C]."""
        return self.observe(images).pooled


def digest_of(tensors: Iterable[Tensor]) -> bytes:
    """SHA-256 of the tensors' bytes, one after the other."""
    digest = hashlib.sha256()
    for tensor in tensors:
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.digest()
