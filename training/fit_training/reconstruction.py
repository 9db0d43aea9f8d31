"""How far a reconstructed image is from the one it should be: a loss to train with, and PSNR.

Knows images. Knows nothing of autoencoders, of where images come from or of how one learns.

Dimension key: B images, H and W their sides in pixels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fit_training.feature_network import FeatureNetwork

# Blocks of the feature network whose outputs are compared: the last ones at strides 2, 4 and 8.
_COMPARED_BLOCKS = (0, 2, 4)


@dataclass(frozen=True)
class LossWeights:
    """What each term of `ReconstructionLoss` counts; 0 switches it off."""

    pixels: float = 1.0
    edges: float = 1.0
    features: float = 0.1
    photograph: float = 0.1


class ReconstructionLoss(nn.Module):
    """L1 distances of pixels, of edges at two scales, and of features (arXiv:1603.08155).

    Meant for a target the input determines: L1 blurs only where there are several to average over.
    """

    def __init__(self, weights: LossWeights, feature_network: FeatureNetwork | None) -> None:
        """Raise `ValueError` if the features count but there is no network to make them."""
        super().__init__()
        if weights.features > 0 and feature_network is None:
            raise ValueError(f"features: weight {weights.features} needs a feature network")
        self.weights = weights
        self.feature_network = feature_network

    def forward(
        self, output_B3HW: Tensor, target_B3HW: Tensor, photo_B3HW: Tensor
    ) -> dict[str, Tensor]:
        """Scalars by name: each term unweighted and their weighted sum `total`.

        All three images are float32 in [-1, 1]; the output may leave that range.
        """
        terms = {
            "pixels": F.l1_loss(output_B3HW, target_B3HW),
            "edges": edge_distance(output_B3HW, target_B3HW),
            "photograph": F.l1_loss(output_B3HW, photo_B3HW),
        }
        if self.weights.features > 0:
            terms["features"] = self._feature_distance(output_B3HW, target_B3HW)
        total = torch.stack(
            [getattr(self.weights, name) * term for name, term in terms.items()]
        ).sum()
        return {name: term.detach() for name, term in terms.items()} | {"total": total}

    def _feature_distance(self, output_B3HW: Tensor, target_B3HW: Tensor) -> Tensor:
        """L1 distance of activations in units of the target's mean one, averaged over stages."""
        with torch.no_grad():
            wanted = self._stages(target_B3HW)
        distances = [
            F.l1_loss(got, want) / want.abs().mean().clamp_min(1e-3)
            for got, want in zip(self._stages(output_B3HW), wanted, strict=True)
        ]
        return torch.stack(distances).mean()

    def _stages(self, images_B3HW: Tensor) -> list[Tensor]:
        """Activations of the compared blocks. Runs in whatever type autocast asks for."""
        assert self.feature_network is not None
        x = F.relu6(self.feature_network.stem(images_B3HW))
        stages = []
        for number in range(_COMPARED_BLOCKS[-1] + 1):
            x = self.feature_network.blocks[number](x)
            if number in _COMPARED_BLOCKS:
                stages.append(x.float())
        return stages


def edge_distance(output_B3HW: Tensor, target_B3HW: Tensor) -> Tensor:
    """L1 distance of horizontal and vertical differences at full and at half size, a scalar."""
    error = output_B3HW - target_B3HW
    distance = torch.zeros((), device=error.device)
    for _ in range(2):
        distance = distance + error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        error = F.avg_pool2d(error, 2)
    return distance / 4


def psnr(images_B3HW: Tensor, reference_B3HW: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of uint8 images, in dB, one value an image: [B].

    Equal images give infinity.
    """
    error = (images_B3HW.float() - reference_B3HW.float()).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(255.0**2 / error)
