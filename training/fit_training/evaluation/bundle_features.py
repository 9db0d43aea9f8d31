"""A bundle's own encoder and denoiser as the network that measures, where there is no other.

Knows how to get features out of a bundle. Knows nothing of measures.

Caveat. These figures are for watching one model change, with no file to fetch; they are none of
the papers'. The network judges pictures that it or a sibling made: what it cannot see, it does not
miss, so it flatters the model it comes from, and a better model is another judge. They
compare only within one bundle (its fingerprint is kept with cached features), never between models.

Dimension key: n images, T packed tokens, S sequences, D width, K token channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fit_models.bundle import Bundle, load_bundle
from fit_models.diffusion.prediction import timestep_of_sigma
from fit_models.packing import layout_of_grids
from fit_models.patches import patchify
from fit_training.evaluation.feature_source import FeatureSource, ImageFeatures, digest_of

SIGMA = 0.1
"""Noise level the network is asked at: what is in the image still stands in the tokens."""
LARGEST_AREA = 256 * 256
"""Larger images are made smaller, in pixels."""
_SEQUENCES = 16


class BundleFeatures(FeatureSource):
    """Mean over tokens of what the middle block puts out at low noise, without a class: [n, D].

    Every image has the noise of one seed, so features are a function of the image.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.name = f"bundle {bundle.name}"
        self._bundle = bundle

    @classmethod
    def load(cls, name_or_path: str, device: torch.device | str = "cpu") -> Self:
        """Read a bundle, in float32.

        Raises:
            ValueError: as `load_bundle`.
        """
        return cls(load_bundle(name_or_path, device, torch.float32))

    @torch.inference_mode()
    def observe(self, images: Sequence[Tensor]) -> ImageFeatures:
        """Pooled features alone."""
        parts = [torch.empty(0, self._bundle.model_config.hidden_size)]
        for start in range(0, len(images), _SEQUENCES):
            parts.append(self._pooled(images[start : start + _SEQUENCES]))
        return ImageFeatures(torch.cat(parts))

    def fingerprint(self) -> bytes:
        """Digest of the denoiser's weights and of what the encoder makes of one image."""
        side = self._bundle.pixels_per_token * 2
        ramp = torch.arange(3 * side * side).remainder(256).to(torch.uint8)
        latent = self._bundle.autoencoder.encode(ramp.view(1, 3, side, side))
        return digest_of([*self._bundle.network.state_dict().values(), latent])

    def _pooled(self, images: Sequence[Tensor]) -> Tensor:
        bundle, config = self._bundle, self._bundle.fitv2("features of a bundle").config
        tokens, grids = [], []
        for image in images:
            fitted = _fitted(image, bundle.pixels_per_token)
            grids.append(tuple(side // bundle.pixels_per_token for side in fitted.shape[-2:]))
            tokens.append(patchify(bundle.autoencoder.encode(fitted), config.patch_size)[0])
        noise_TK = torch.cat([_noise(len(own), config.token_channels) for own in tokens])
        x_TK = (1 - SIGMA) * torch.cat(tokens) + SIGMA * noise_TK.to(bundle.device)
        layout = layout_of_grids(grids, config.head_dim, config.rope, bundle.device)
        timestep_S = torch.full((len(grids),), timestep_of_sigma(SIGMA), device=bundle.device)
        label_S = torch.full((len(grids),), config.null_label, device=bundle.device)
        hidden_TD = self._middle(x_TK, layout, timestep_S, label_S)
        means = [own.mean(dim=0) for own in hidden_TD.float().split(list(layout.lengths))]
        return torch.stack(means).cpu()

    def _middle(self, *network_input: Any) -> Tensor:
        """What the middle block adds up to, [T, D]."""
        network = self._bundle.fitv2("features of a bundle")
        kept: list[Tensor] = []

        def keep(_module: nn.Module, _inputs: Any, output: tuple[Tensor, Tensor]) -> None:
            kept.append(output[0].clone())

        hook = network.blocks[(len(network.blocks) - 1) // 2].register_forward_hook(keep)
        try:
            network(*network_input)
        finally:
            hook.remove()
        return kept[0]


def _noise(num_tokens: int, channels: int) -> Tensor:
    return torch.randn(num_tokens, channels, generator=torch.Generator().manual_seed(0))


def _fitted(image: Tensor, multiple: int) -> Tensor:
    """The image as [1, 3, height, width] with sides of whole tokens, not too many of them."""
    shrink = min(1.0, math.sqrt(LARGEST_AREA / (image.shape[1] * image.shape[2])))
    sides = [max(1, round(side * shrink / multiple)) * multiple for side in image.shape[1:]]
    if sides == list(image.shape[1:]):
        return image[None]
    resized = F.interpolate(image[None].float(), sides, mode="bicubic", antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8)
