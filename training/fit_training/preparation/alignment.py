"""Targets for representation alignment (REPA, arXiv:2410.06940): one image feature per token.

Knows how an image becomes one feature vector per 16-pixel token and how those vectors are
shortened by principal components. Knows nothing of latents or files of tokens.

Dimension key: B images, C channels, D kept components, M sample vectors; height, width in tokens.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from fit_training.feature_network import FEATURE_DIM, STRIDE, FeatureNetwork, network_input

TOKEN_PIXELS = 16
UPSAMPLING = STRIDE // TOKEN_PIXELS


@torch.inference_mode()
def token_activations(network: FeatureNetwork, images: Tensor) -> Tensor:
    """Return the feature network's head activations, one vector a token, [B, 1280, height, width].

    `images` are uint8 [B, 3, 16 * height, 16 * width]. The network's stride is 32, so it sees the
    image enlarged twice. Its SAME padding centres each vector on the token's lower right corner
    rather than its middle, little beside a receptive field of many tokens. The arithmetic runs on
    the network's device and in its dtype.
    """
    weight = network.classifier.weight
    x = images.to(weight.device).float()
    x = F.interpolate(x, scale_factor=UPSAMPLING, mode="bilinear", align_corners=False)
    x = network_input(x).to(dtype=weight.dtype, memory_format=torch.channels_last)
    return network.spatial(x)


@dataclass(frozen=True)
class AlignmentBasis:
    """Mean [1280] and basis [1280, D] of the kept components, scaled to overall unit deviation."""

    mean: Tensor
    basis: Tensor

    @property
    def num_components(self) -> int:
        """D, the length of a feature."""
        return self.basis.shape[1]

    def equals(self, other: "AlignmentBasis") -> bool:
        """Whether both hold the same numbers."""
        return torch.equal(self.mean, other.mean) and torch.equal(self.basis, other.basis)

    def project(self, activations: Tensor) -> Tensor:
        """Map activations [..., 1280] to float32 features [..., D]."""
        return (activations.float() - self.mean) @ self.basis

    def save(self, path: Path) -> None:
        """Write both tensors to a safetensors file, whole or not at all."""
        unfinished = path.with_name(f".{path.name}.tmp")
        save_file({"mean": self.mean.contiguous(), "basis": self.basis.contiguous()}, unfinished)
        os.replace(unfinished, path)


def load_alignment_basis(path: Path) -> AlignmentBasis:
    """Read a saved basis; raises `ValueError` when the file is absent or holds something else."""
    if not path.is_file():
        raise ValueError(f"alignment basis: no such file: {path}")
    tensors = load_file(path)
    if set(tensors) != {"mean", "basis"}:
        raise ValueError(f"alignment basis: {path} holds {sorted(tensors)}, not mean and basis")
    basis = AlignmentBasis(tensors["mean"], tensors["basis"])
    if basis.mean.shape != (FEATURE_DIM,) or basis.basis.shape[:1] != (FEATURE_DIM,):
        raise ValueError(
            f"alignment basis: {path} has shapes {tuple(basis.mean.shape)} and "
            f"{tuple(basis.basis.shape)}, not ({FEATURE_DIM},) and ({FEATURE_DIM}, D)"
        )
    return basis


def fit_alignment_basis(activations: Tensor, num_components: int) -> AlignmentBasis:
    """Fit the first principal components to sample vectors [M, C].

    The signs are fixed (largest entry positive), so the result depends on the sample alone. Raises
    `ValueError` when M or C is too small for so many components.
    """
    num_vectors, num_channels = activations.shape
    if not 0 < num_components <= min(num_vectors - 1, num_channels):
        raise ValueError(
            f"num_components: {num_components} is not between 1 and {num_channels} channels, "
            f"or the sample of {num_vectors} vectors is too small for it"
        )
    sample = activations.double()
    mean = sample.mean(dim=0)
    centred = sample - mean
    covariance = centred.T @ centred / num_vectors
    variances, directions = torch.linalg.eigh(covariance)  # ascending
    variances = variances[-num_components:].flip(0)
    directions = directions[:, -num_components:].flip(1)
    largest = directions.abs().argmax(dim=0)
    directions = directions * directions.gather(0, largest[None]).sign()
    deviation = variances.mean().clamp_min(torch.finfo(torch.float64).tiny).sqrt()
    return AlignmentBasis(mean.float(), (directions / deviation).float())
