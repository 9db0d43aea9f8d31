"""Networks that measure images: EfficientNet-lite0, the FID's Inception-v3, any TorchScript file.

Knows how each wants its images and tells files apart by what is in them. Knows nothing of measures.
"""

from __future__ import annotations

import hashlib
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fit_models.bundle import EMBEDDED
from fit_training.evaluation.bundle_features import BundleFeatures
from fit_training.evaluation.feature_source import FeatureSource, ImageFeatures, digest_of
from fit_training.evaluation.inception import InceptionV3, inception_input
from fit_training.evaluation.inception_weights import (
    build_inception,
    is_inception,
    read_saved_tensors,
)
from fit_training.evaluation.measures import extract_features
from fit_training.feature_network import FeatureNetwork, load_feature_network

_BATCH = 32


class EfficientNetFeatures(FeatureSource):
    """EfficientNet-lite0: 1280 channels, images squashed to 224 x 224."""

    name = "EfficientNet-lite0"

    def __init__(self, network: FeatureNetwork) -> None:
        self._network = network

    def observe(self, images: Sequence[Tensor]) -> ImageFeatures:
        """Pooled features alone."""
        return ImageFeatures(extract_features(self._network, images))

    def fingerprint(self) -> bytes:
        """Digest of the weights."""
        return digest_of(self._network.state_dict().values())


class InceptionFeatures(FeatureSource):
    """The FID's Inception-v3, which has features for every column of the papers' tables."""

    name = "Inception-v3 (2015-12-05)"

    def __init__(self, network: InceptionV3) -> None:
        self._network = network

    @torch.inference_mode()
    def observe(self, images: Sequence[Tensor]) -> ImageFeatures:
        """Pooled and spatial features, and logits."""
        device = self._network.fc.weight.device
        parts = []
        for group in _groups(images):
            x = torch.cat([inception_input(image.to(device)) for image in group])
            found = self._network(x)
            parts.append(ImageFeatures(found.pooled.cpu(), found.spatial.cpu(), found.logits.cpu()))
        return ImageFeatures.joined(parts)

    def fingerprint(self) -> bytes:
        """Digest of the weights."""
        return digest_of(self._network.state_dict().values())


class TorchScriptFeatures(FeatureSource):
    """A module of one's own, which maps uint8 [B, 3, height, width] to [B, C].

    Neighbouring images of one size are given together. What the module does with sizes and levels
    is its own business.
    """

    def __init__(self, module: torch.jit.ScriptModule, path: Path, device: torch.device) -> None:
        self.name = path.name
        self._module, self._path, self._device = module, path, device

    @torch.inference_mode()
    def observe(self, images: Sequence[Tensor]) -> ImageFeatures:
        """Pooled features alone.

        Raises:
            ValueError: the module gives something else than [B, C].
        """
        parts = []
        for group in _groups(images, same_size=True):
            found = self._module(torch.stack(group).to(self._device))
            if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(group):
                shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
                raise ValueError(
                    f"feature network: {self._path} gives {shape} for {len(group)} images, "
                    f"not [{len(group)}, C]"
                )
            parts.append(ImageFeatures(found.float().cpu()))
        return ImageFeatures.joined(parts)

    def fingerprint(self) -> bytes:
        """Digest of the file."""
        with self._path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()


def open_feature_source(name_or_path: str, device: torch.device | str = "cpu") -> FeatureSource:
    """Load the network that a file or a bundle holds.

    Args:
        name_or_path: EfficientNet-lite0 or Inception-v3 weights, a TorchScript file, the folder of
            a bundle, or "embedded".
        device: where it runs.

    Raises:
        ValueError: there is no such file, or it holds none of these.
    """
    path = Path(name_or_path).expanduser()
    if name_or_path == EMBEDDED or path.is_dir():
        return BundleFeatures.load(name_or_path, device)
    if not path.is_file():
        raise ValueError(f"feature network: no such weights file: {path}")
    if _is_torchscript(path):
        return TorchScriptFeatures(_load_torchscript(path, device), path, torch.device(device))
    if not _is_safetensors(path):
        weights = read_saved_tensors(path)
    else:
        weights = _read_safetensors(path)
        if not is_inception(set(weights)):
            return EfficientNetFeatures(load_feature_network(path).to(device))
    return InceptionFeatures(build_inception(weights, str(path)).to(device))


def _groups(images: Sequence[Tensor], same_size: bool = False) -> Iterator[list[Tensor]]:
    group: list[Tensor] = []
    for image in images:
        unlike = same_size and group and group[0].shape != image.shape
        if unlike or len(group) == _BATCH:
            yield group
            group = []
        group.append(image)
    if group:
        yield group


def _is_safetensors(path: Path) -> bool:
    """A length in eight bytes, then a JSON object."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def _load_torchscript(path: Path, device: torch.device | str) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():  # the format stays what people have
        warnings.filterwarnings("ignore", "`torch.jit.load` is deprecated", DeprecationWarning)
        try:
            return torch.jit.load(path, map_location=device).eval()
        except RuntimeError as error:
            first = str(error).strip().splitlines()[0]
            raise ValueError(f"feature network: {path} cannot be loaded: {first}") from None


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"feature network: {path} is damaged: {error}") from None
