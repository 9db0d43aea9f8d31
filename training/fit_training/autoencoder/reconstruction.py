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
# And further in, at strides 16 and 32, where things are told apart rather than textures.
_DEEP_BLOCKS = (10, 15)
MINIMUM_SIDE = 32  # pixels: a window of 4 at stride 8
_SMOOTHING = 1e-5  # under a root, so that its slope stays finite; well under (1/127.5)^2


@dataclass(frozen=True)
class LossWeights:
    """What each term of `ReconstructionLoss` counts; 0 switches it off.

    Features are those of the image enlarged `feature_scale` times: a small picture is enlarged too
    when it is recognised.
    """

    pixels: float = 1.0
    colour: float = 3.0
    edges: float = 1.0
    texture: float = 0.6
    features: float = 0.25
    feature_texture: float = 0.3
    photograph: float = 0.1
    deep_features: float = 1.0
    feature_scale: float = 1.5

    @property
    def need_features(self) -> bool:
        """Whether a feature network is asked for."""
        return max(self.features, self.feature_texture, self.deep_features) > 0


class ReconstructionLoss(nn.Module):
    """L1 distances of pixels, colours, edges, features (arXiv:1603.08155) and local texture.

    Pixels, edges and features alone blur what a small network cannot place to the pixel. The
    texture terms compare only how much of it there is, in the spirit of style losses
    (arXiv:1508.06576), but window by window.
    """

    def __init__(self, weights: LossWeights, feature_network: FeatureNetwork | None) -> None:
        """Raise `ValueError` if the features count but there is no network to make them."""
        super().__init__()
        if weights.need_features and feature_network is None:
            raise ValueError(f"feature_network: needed, for features weigh {weights.features}")
        self.weights = weights
        self.feature_network = feature_network

    def forward(
        self, output_B3HW: Tensor, target_B3HW: Tensor, photo_B3HW: Tensor | None
    ) -> dict[str, Tensor]:
        """Scalars by name: each term unweighted and their weighted sum `total`.

        All images are float32 in [-1, 1]; the output may leave that range. Where there is no
        photograph there is no term `photograph`. Raises `ValueError` for a side under 32 pixels.
        """
        for field, side in zip(("height", "width"), output_B3HW.shape[2:], strict=True):
            if side < MINIMUM_SIDE:
                raise ValueError(f"{field}: {side} is less than {MINIMUM_SIDE}")
        terms = {
            "pixels": F.l1_loss(output_B3HW, target_B3HW),
            "colour": colour_distance(output_B3HW, target_B3HW),
            "edges": edge_distance(output_B3HW, target_B3HW),
            "texture": texture_distance(output_B3HW, target_B3HW),
        }
        if photo_B3HW is not None:
            terms["photograph"] = F.l1_loss(output_B3HW, photo_B3HW)
        if self.weights.need_features:
            terms |= self._feature_distances(output_B3HW, target_B3HW)
        total = torch.stack(
            [getattr(self.weights, name) * term for name, term in terms.items()]
        ).sum()
        return {name: term.detach() for name, term in terms.items()} | {"total": total}

    def _feature_distances(self, output_B3HW: Tensor, target_B3HW: Tensor) -> dict[str, Tensor]:
        """L1 distances of activations and of their local deviation, averaged over stages.

        All in units of the target's mean absolute activation.
        """
        with torch.no_grad():
            wanted = self._stages(target_B3HW)
        features, textures, deep = [], [], []
        for number, got in self._stages(output_B3HW).items():
            want = wanted[number]
            unit = want.abs().mean().clamp_min(1e-3)
            distance = F.l1_loss(got, want) / unit
            if number in _DEEP_BLOCKS:
                deep.append(distance)
                continue
            features.append(distance)
            textures.append(F.l1_loss(_local_deviation(got), _local_deviation(want)) / unit)
        terms = {
            "features": torch.stack(features).mean(),
            "feature_texture": torch.stack(textures).mean(),
        }
        return terms | ({"deep_features": torch.stack(deep).mean()} if deep else {})

    def _stages(self, images_B3HW: Tensor) -> dict[int, Tensor]:
        """Activations of the compared blocks. Runs in whatever type autocast asks for."""
        assert self.feature_network is not None
        compared = _COMPARED_BLOCKS + (_DEEP_BLOCKS if self.weights.deep_features > 0 else ())
        if self.weights.feature_scale != 1:
            images_B3HW = F.interpolate(
                images_B3HW, scale_factor=self.weights.feature_scale, mode="bilinear"
            )
        x = F.relu6(self.feature_network.stem(images_B3HW))
        stages = {}
        for number in range(compared[-1] + 1):
            x = self.feature_network.blocks[number](x)
            if number in compared:
                stages[number] = x.float()
        return stages


def colour_distance(output_B3HW: Tensor, target_B3HW: Tensor) -> Tensor:
    """L1 distance of the mean colours of squares of 8 pixels, a scalar.

    In a textured square the pixels' own L1 has little to say about the mean.
    """
    return F.avg_pool2d(output_B3HW - target_B3HW, 8).abs().mean()


def edge_distance(output_B3HW: Tensor, target_B3HW: Tensor) -> Tensor:
    """L1 distance of horizontal and vertical differences at full and at half size, a scalar."""
    error = output_B3HW - target_B3HW
    distance = torch.zeros((), device=error.device)
    for _ in range(2):
        distance = distance + error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        error = F.avg_pool2d(error, 2)
    return distance / 4


def texture_distance(output_B3HW: Tensor, target_B3HW: Tensor) -> Tensor:
    """L1 distance of root mean square differences in squares of 8 pixels, a scalar.

    At full and at half size: at full size alone, a weave of single pixels would do for any texture.
    """
    distance = torch.zeros((), device=output_B3HW.device)
    for window in (8, 4):
        for dim in (-1, -2):
            got = _root_mean(output_B3HW.diff(dim=dim).square(), window)
            want = _root_mean(target_B3HW.diff(dim=dim).square(), window)
            distance = distance + F.l1_loss(got, want)
        output_B3HW, target_B3HW = F.avg_pool2d(output_B3HW, 2), F.avg_pool2d(target_B3HW, 2)
    return distance / 4


def _local_deviation(activations_BCHW: Tensor) -> Tensor:
    """Standard deviation in squares of 4 that overlap by half."""
    mean = F.avg_pool2d(activations_BCHW, 4, 2)
    square = F.avg_pool2d(activations_BCHW.square(), 4, 2)
    return (square - mean.square()).clamp_min(0).add(_SMOOTHING).sqrt()


def _root_mean(squares_BCHW: Tensor, window: int) -> Tensor:
    """Root of the mean in squares that overlap by half."""
    return F.avg_pool2d(squares_BCHW, window, window // 2).add(_SMOOTHING).sqrt()


def psnr(images_B3HW: Tensor, reference_B3HW: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of uint8 images, in dB, one value an image: [B].

    Equal images give infinity.
    """
    error = (images_B3HW.float() - reference_B3HW.float()).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(255.0**2 / error)
