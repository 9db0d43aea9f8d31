"""The work of preparation: from photographs to the latent images of one shard.

Knows networks, batches and what is asked for. Leaves reading to the sources, crops and sizes to
image_variants.py and fit_rule.py, feature targets to alignment.py, files to latent_shards.py.
"""

import hashlib
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fit_models.autoencoder import Autoencoder
from fit_models.patches import patchify
from fit_training.autoencoder.autoencoder_folder import autoencoder_folder
from fit_training.feature_network import FeatureNetwork, load_feature_network
from fit_training.preparation.alignment import (
    TOKEN_PIXELS,
    AlignmentBasis,
    fit_alignment_basis,
    load_alignment_basis,
    token_activations,
)
from fit_training.preparation.decoding import BrokenPhotographError
from fit_training.preparation.latent_shards import LatentImage, file_sha256, shard_name
from fit_training.preparation.photographs import PhotographSource, SkippedPhotograph, none_usable
from fit_training.preparation.prepare_config import PrepareConfig

PATCH_SIZE = 2
BASIS = "pca.safetensors"


@dataclass(frozen=True)
class RenderedImage:
    """One variant of a photo, uint8 [3, height, width]; `photo` counts in the index's order."""

    photo: int
    label: int
    flip: bool
    pixels: Tensor


class LatentPreparation:
    """The photographs and the networks of one run, and the work on a batch or a shard.

    Attributes:
        photographs: of the source, shuffled; a photo's number is its place here.
        broken: photos that turned out broken when they were decoded, and why.
    """

    def __init__(self, config: PrepareConfig, source: PhotographSource) -> None:
        self.config = config
        self.source = source
        self.photographs = list(source.photographs)
        self.broken: dict[int, str] = {}
        random.Random(config.seed).shuffle(self.photographs)  # every shard has every class
        self._autoencoder_folder = autoencoder_folder(config.autoencoder)
        self.autoencoder = Autoencoder.from_folder(self._autoencoder_folder)
        if self.autoencoder.downsampling * PATCH_SIZE != TOKEN_PIXELS:
            raise ValueError(
                f"autoencoder: {self.autoencoder.downsampling} pixels per latent and patches of "
                f"{PATCH_SIZE}, but a token must be {TOKEN_PIXELS} pixels"
            )
        # On a CPU bfloat16 convolutions take 1.4 times as long.
        on_cpu = torch.device(config.device).type == "cpu"
        self.autoencoder.to(config.device, torch.float32 if on_cpu else torch.bfloat16)
        self.feature_network: FeatureNetwork | None = None
        if config.feature_network is not None:
            network = load_feature_network(config.feature_network)
            self.feature_network = network.to(config.device, torch.bfloat16)
        self.basis: AlignmentBasis | None = None

    def settle_basis(self) -> None:
        """Take the alignment basis of the destination, the given one, or a new one; save it.

        Without a feature network there is none.
        """
        if self.feature_network is not None:
            self.basis = self._basis(self.feature_network)
            self.basis.save(self.config.destination / BASIS)

    def description(self) -> dict[str, Any]:
        """Return what the index says of this run: what must stay the same to go on with it."""
        config = self.config
        sources = {
            "photographs": self.source.fingerprint(),
            "autoencoder": _sha256(*sorted(self._autoencoder_folder.glob("*.safetensors"))),
        }
        if config.feature_network is not None:
            sources["feature_network"] = file_sha256(config.feature_network)
        options = {"seed": config.seed, "images_per_shard": config.images_per_shard}
        return {
            "split": config.split,
            "patch_size": PATCH_SIZE,
            "autoencoder": {
                "shift_factor": self.autoencoder.shift_factor,
                "scaling_factor": self.autoencoder.scaling_factor,
            },
            "alignment_dim": 0 if self.basis is None else self.basis.num_components,
            "sources": sources,
            "options": options | config.variants.options(),
            "classes": [
                {"label": label, "name": name, "text": name.replace("_", " ").lower()}
                for label, name in enumerate(self.source.class_names)
            ],
            "photographs": [photograph.path for photograph in self.photographs],
        }

    def described(self, broken: Mapping[int, str]) -> list[SkippedPhotograph]:
        """Give broken photos their paths."""
        return [SkippedPhotograph(self.photographs[i].path, why) for i, why in broken.items()]

    def shards(self) -> Iterator[tuple[str, Sequence[int], int]]:
        """Yield (name, photos, variant) of every shard, variant by variant."""
        size, variants = self.config.images_per_shard, self.config.variants
        for variant in range(variants.num_variants):
            photos = [
                number
                for number, photo in enumerate(self.photographs)
                if variants.applies((photo.width, photo.height), variant)
            ]
            for part, start in enumerate(range(0, len(photos), size)):
                yield shard_name(variant, part), photos[start : start + size], variant

    def images(self, photos: Sequence[int], variant: int) -> list[LatentImage]:
        """Return one variant of the given photos, in their order, without the broken ones."""
        with ThreadPoolExecutor(self.config.num_workers) as workers:
            batches = workers.map(self.encode, self.batches(photos, variant))
            by_photo = {image.photo: image for batch in batches for image in batch}
        return [by_photo[photo] for photo in photos if photo in by_photo]

    def batches(self, photos: Sequence[int], variant: int) -> list[list[RenderedImage]]:
        """Render and group by equal size, in groups within `max_batch_pixels` or of one image.

        Photos that turn out broken are in no batch, but in `broken`.
        """
        by_size: dict[torch.Size, list[RenderedImage]] = defaultdict(list)
        whole = [photo for photo in photos if photo not in self.broken]
        with ThreadPoolExecutor(self.config.num_workers) as workers:
            for image in workers.map(lambda photo: self._rendered(photo, variant), whole):
                if image is not None:
                    by_size[image.pixels.shape].append(image)
        batches = []
        for (_, height, width), images in sorted(by_size.items()):
            size = max(1, self.config.max_batch_pixels // (height * width))
            batches += [images[start : start + size] for start in range(0, len(images), size)]
        return batches

    def encode(self, batch: Sequence[RenderedImage]) -> list[LatentImage]:
        """Turn rendered images of equal size into tokens and alignment features."""
        pixels = torch.stack([image.pixels for image in batch])
        tokens_BNC = patchify(self.autoencoder.encode(pixels).cpu(), PATCH_SIZE)
        features: Sequence[Tensor | None] = [None] * len(batch)
        if self.feature_network is not None and self.basis is not None:
            activations = self._activations(self.feature_network, pixels)
            features = list(self.basis.project(activations).flatten(1, 2))
        _, _, height, width = pixels.shape
        return [
            LatentImage(
                tokens=tokens,
                features=feature,
                grid=(height // TOKEN_PIXELS, width // TOKEN_PIXELS),
                label=image.label,
                photo=image.photo,
                flip=image.flip,
            )
            for image, tokens, feature in zip(batch, tokens_BNC, features, strict=True)
        ]

    def _rendered(self, photo: int, variant: int) -> RenderedImage | None:
        photograph, variants = self.photographs[photo], self.config.variants
        try:
            image = self.source.open(photograph)
        except BrokenPhotographError as error:
            self.broken[photo] = str(error)
            return None
        pixels = variants.pixels(image, self.config.seed, photo, variant)
        return RenderedImage(photo, photograph.label, variants.flips(variant), pixels)

    def _activations(self, network: FeatureNetwork, pixels: Tensor) -> Tensor:
        """Return the feature network's vectors, token by token, [B, rows, columns, 1280]."""
        return token_activations(network, pixels).permute(0, 2, 3, 1).float().cpu()

    def _basis(self, network: FeatureNetwork) -> AlignmentBasis:
        begun, given = self.config.destination / BASIS, self.config.alignment_basis
        if begun.is_file():
            basis = load_alignment_basis(begun)
            if given is not None and not basis.equals(load_alignment_basis(given)):
                raise ValueError(f"alignment_basis: {given} is not the one {begun} was begun with")
        elif given is not None:
            basis = load_alignment_basis(given)
        else:
            photos = range(min(self.config.alignment_photographs, len(self.photographs)))
            batches = self.batches(photos, variant=0)
            if not batches:
                where, broken = self.config.photographs, self.described(self.broken)
                raise ValueError(none_usable(where, broken))
            stacked = (torch.stack([image.pixels for image in batch]) for batch in batches)
            activations = [self._activations(network, pixels).flatten(0, 2) for pixels in stacked]
            basis = fit_alignment_basis(torch.cat(activations), self.config.alignment_dim)
        if basis.num_components != self.config.alignment_dim:
            raise ValueError(
                f"alignment_dim: {self.config.alignment_dim}, but the basis has "
                f"{basis.num_components} components"
            )
        return basis


def _sha256(*paths: Path) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()
