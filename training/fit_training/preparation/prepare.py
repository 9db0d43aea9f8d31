"""Photographs -> token-packed latents with alignment features, once, before training.

Knows the order of the work and how to resume it. Leaves the archive to photographs.py, crops and
sizes to image_variants.py, feature targets to alignment.py, the file format to latent_shards.py.
"""

import hashlib
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fit_models.autoencoder import Autoencoder
from fit_models.patches import patchify
from fit_training.feature_network import load_feature_network
from fit_training.preparation.alignment import (
    TOKEN_PIXELS,
    AlignmentBasis,
    fit_alignment_basis,
    load_alignment_basis,
    token_activations,
)
from fit_training.preparation.image_variants import VariantConfig, choose_variant, render
from fit_training.preparation.latent_shards import LatentFolder, LatentImage, shard_name
from fit_training.preparation.photographs import PhotographArchive

PATCH_SIZE = 2
BASIS = "pca.safetensors"
Progress = Callable[[int, int], None]  # number of images finished, and of all


@dataclass(frozen=True)
class PrepareConfig:
    """What to read, where to write, and how.

    `photographs` is an archive for photographs.py, `autoencoder` a folder in diffusers' layout,
    `feature_network` a weights file. `class_names` chooses and orders the labels (every class, when
    None). The alignment basis is fitted to `alignment_photographs` photos, or read from
    `alignment_basis`: a validation folder takes the one of its training folder. A batch has at most
    `max_batch_pixels` pixels, and `num_workers` threads run batches beside one another.
    """

    photographs: Path
    destination: Path
    autoencoder: Path
    feature_network: Path
    split: str = "train"
    class_names: tuple[str, ...] | None = None
    variants: VariantConfig = field(default_factory=VariantConfig)
    seed: int = 0
    images_per_shard: int = 2000
    alignment_dim: int = 96
    alignment_photographs: int = 512
    alignment_basis: Path | None = None
    max_batch_pixels: int = 2**18
    num_workers: int = 2
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Raise `ValueError` for counts below 1."""
        counts = ("images_per_shard", "alignment_dim", "alignment_photographs", "num_workers")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is below 1")


@dataclass(frozen=True)
class RenderedImage:
    """One variant of a photo, uint8 [3, height, width]; `photo` counts in the index's order."""

    photo: int
    label: int
    flip: bool
    pixels: Tensor


def prepare_latents(config: PrepareConfig, progress: Progress | None = None) -> None:
    """Write every shard that is not there yet: variant 0 of all photos first, then variant 1, ...

    Safe to stop and to start again: the index names finished shards only. Raises `ValueError` for
    unusable inputs and when the destination was begun with other options.
    """
    config.destination.mkdir(parents=True, exist_ok=True)
    with PhotographArchive(config.photographs, config.class_names) as archive:
        preparation = LatentPreparation(config, archive)
        with _threads_shared_among(config.num_workers):
            preparation.settle_basis()
            folder = LatentFolder(config.destination, preparation.description())
            for name, photos, variant in preparation.shards():
                if not folder.holds(name):
                    folder.add(name, variant, preparation.images(photos, variant))
                if progress is not None:
                    done = variant * len(preparation.photographs) + photos.stop
                    progress(done, config.variants.num_variants * len(preparation.photographs))


class LatentPreparation:
    """The archive and the networks of one run, and the work on a batch or a shard."""

    def __init__(self, config: PrepareConfig, archive: PhotographArchive) -> None:
        self.config = config
        self.archive = archive
        self.photographs = list(archive.photographs)
        random.Random(config.seed).shuffle(self.photographs)  # every shard has every class
        self.autoencoder = Autoencoder.from_folder(config.autoencoder)
        if self.autoencoder.downsampling * PATCH_SIZE != TOKEN_PIXELS:
            raise ValueError(
                f"autoencoder: {self.autoencoder.downsampling} pixels per latent and patches of "
                f"{PATCH_SIZE}, but a token must be {TOKEN_PIXELS} pixels"
            )
        self.autoencoder.to(config.device, torch.bfloat16)
        network = load_feature_network(config.feature_network)
        self.feature_network = network.to(config.device, torch.bfloat16)
        self.basis: AlignmentBasis

    def settle_basis(self) -> None:
        """Take the alignment basis of the destination, the given one, or a new one; save it."""
        self.basis = self._basis()
        self.basis.save(self.config.destination / BASIS)

    def description(self) -> dict[str, Any]:
        """Return what the index says of this run: what must stay the same to go on with it."""
        config = self.config
        sources = {
            "photographs": _sha256(config.photographs),
            "feature_network": _sha256(config.feature_network),
            "autoencoder": _sha256(*sorted(config.autoencoder.glob("*.safetensors"))),
        }
        options = {"seed": config.seed, "images_per_shard": config.images_per_shard}
        return {
            "split": config.split,
            "patch_size": PATCH_SIZE,
            "alignment_dim": config.alignment_dim,
            "sources": sources,
            "options": options | asdict(config.variants),
            "classes": [
                {"label": label, "name": name, "text": name.replace("_", " ").lower()}
                for label, name in enumerate(self.archive.class_names)
            ],
            "photographs": [photograph.path for photograph in self.photographs],
        }

    def shards(self) -> Iterator[tuple[str, range, int]]:
        """Yield (name, photos, variant) of every shard, variant by variant."""
        size, count = self.config.images_per_shard, len(self.photographs)
        for variant in range(self.config.variants.num_variants):
            for part, start in enumerate(range(0, count, size)):
                yield shard_name(variant, part), range(start, min(start + size, count)), variant

    def images(self, photos: Sequence[int], variant: int) -> list[LatentImage]:
        """Return one variant of the given photos, in their order."""
        with ThreadPoolExecutor(self.config.num_workers) as workers:
            batches = workers.map(self.encode, self.batches(photos, variant))
            by_photo = {image.photo: image for batch in batches for image in batch}
        return [by_photo[photo] for photo in photos]

    def batches(self, photos: Sequence[int], variant: int) -> list[list[RenderedImage]]:
        """Render and group by equal size, in groups within `max_batch_pixels` or of one image."""
        by_size: dict[torch.Size, list[RenderedImage]] = defaultdict(list)
        for photo in photos:
            image = self._rendered(photo, variant)
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
        features = self.basis.project(self._activations(pixels))
        _, rows, columns, _ = features.shape
        return [
            LatentImage(
                tokens=tokens,
                features=feature.reshape(rows * columns, -1),
                grid=(rows, columns),
                label=image.label,
                photo=image.photo,
                flip=image.flip,
            )
            for image, tokens, feature in zip(batch, tokens_BNC, features, strict=True)
        ]

    def _rendered(self, photo: int, variant: int) -> RenderedImage:
        photograph = self.photographs[photo]
        size = (photograph.width, photograph.height)
        chosen = choose_variant(size, self.config.variants, self.config.seed, photo, variant)
        pixels = render(self.archive.open(photograph), chosen)
        return RenderedImage(photo, photograph.label, chosen.flip, pixels)

    def _activations(self, pixels: Tensor) -> Tensor:
        """Return the feature network's vectors, token by token, [B, rows, columns, 1280]."""
        return token_activations(self.feature_network, pixels).permute(0, 2, 3, 1).float().cpu()

    def _basis(self) -> AlignmentBasis:
        begun, given = self.config.destination / BASIS, self.config.alignment_basis
        if begun.is_file():
            basis = load_alignment_basis(begun)
            if given is not None and not basis.equals(load_alignment_basis(given)):
                raise ValueError(f"alignment_basis: {given} is not the one {begun} was begun with")
        elif given is not None:
            basis = load_alignment_basis(given)
        else:
            photos = range(min(self.config.alignment_photographs, len(self.photographs)))
            activations = [
                self._activations(torch.stack([image.pixels for image in batch])).flatten(0, 2)
                for batch in self.batches(photos, variant=0)
            ]
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


@contextmanager
def _threads_shared_among(num_workers: int) -> Iterator[None]:
    """Divide torch's threads among the workers: one thread a batch beats all threads on one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // num_workers))
    try:
        yield
    finally:
        torch.set_num_threads(threads)
