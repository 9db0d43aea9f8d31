"""Prepared latents in memory, and the packed batches of an epoch.

Knows the folder of `fit_training.preparation.prepare`; not networks or losses. Every batch is a
function of (seed, epoch, position), so a resumed run sees what an unbroken one would have seen.

Dimension key: T packed tokens, S sequences, K token channels, A channels of alignment features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fit_training.preparation.latent_shards import read_index, read_shard

# Images of equal token count that stay together in a batch, so that attention runs them at once.
_CHUNK_IMAGES = 8


@dataclass(frozen=True)
class LatentBatch:
    """Images end to end: tokens [T, K], features [T, A], labels [S] and grids (rows, columns).

    A is 0 where the folder was prepared without a feature network.
    """

    tokens: Tensor
    features: Tensor
    labels: Tensor
    grids: tuple[tuple[int, int], ...]


class LatentDataset:
    """All shards of a folder, normalised to unit variance.

    Attributes:
        class_names: in label order.
        latent_shift: subtracted from latents.
        latent_scale: then multiplied in; both go into the served autoencoder's config.
    """

    def __init__(self, folder: Path, classes: Sequence[str] = ()) -> None:
        index = read_index(folder)
        shards = [read_shard(folder, row, verify=True) for row in index["shards"]]
        if not shards:
            raise ValueError(f"data: {folder} has no finished shard")
        prepared = [row["text"] for row in index["classes"]]
        if unknown := sorted(set(classes) - set(prepared)):
            raise ValueError(f"classes {unknown} are not in {folder}; it has {prepared}")
        self.class_names = tuple(classes or prepared)
        mean = torch.tensor(index["latent_mean"], dtype=torch.float64)
        spread = torch.tensor(index["latent_std"], dtype=torch.float64)
        self.latent_shift = float(mean.mean())
        self.latent_scale = float(
            1.0 / (spread.square() + (mean - mean.mean()).square()).mean().sqrt()
        )
        self._autoencoder: dict[str, float] | None = index.get("autoencoder")
        self._folder = folder
        self._tokens = torch.cat([s["tokens"] for s in shards])
        self._features = torch.cat([s.get("features", s["tokens"][:, :0]) for s in shards])
        self.grids = torch.cat([s["grid"] for s in shards]).long().numpy()
        new_label = np.array(
            [self.class_names.index(n) if n in self.class_names else -1 for n in prepared]
        )
        self.labels = new_label[torch.cat([s["label"] for s in shards]).long().numpy()]
        self._photos = torch.cat([s["photo"] for s in shards]).long().numpy()
        self._images = np.flatnonzero(self.labels >= 0)
        self.lengths = self.grids.prod(axis=1)
        self._starts = np.concatenate(([0], np.cumsum(self.lengths)))

    def use_normalisation_of(self, other: LatentDataset) -> None:
        """Take shift and scale from the training set: a model has one latent space."""
        self.latent_shift, self.latent_scale = other.latent_shift, other.latent_scale

    def use_latents_of(self, shift_factor: float, scaling_factor: float) -> None:
        """Take the latent space of a model, (raw latent - shift_factor) * scaling_factor.

        Raises:
            ValueError: the folder does not say what its autoencoder did to raw latents.
        """
        if self._autoencoder is None:
            raise ValueError(
                f"data: {self._folder} was prepared by an earlier version and lacks `autoencoder` "
                "in its index; prepare it again"
            )
        own = self._autoencoder
        self.latent_shift = (shift_factor - own["shift_factor"]) * own["scaling_factor"]
        self.latent_scale = scaling_factor / own["scaling_factor"]

    def __len__(self) -> int:
        return len(self._images)

    def batch(self, images: np.ndarray) -> LatentBatch:
        """Pack the given images in the given order."""
        starts = self._starts.tolist()
        rows = torch.from_numpy(
            np.concatenate([np.arange(starts[i], starts[i + 1]) for i in images.tolist()])
        )
        return LatentBatch(
            tokens=(self._tokens[rows].float() - self.latent_shift) * self.latent_scale,
            features=self._features[rows].float(),
            labels=torch.from_numpy(self.labels[images]),
            grids=tuple((int(h), int(w)) for h, w in self.grids[images]),
        )

    def epoch(
        self, tokens_per_batch: int, class_balance: float, seed: int, epoch: int
    ) -> list[np.ndarray]:
        """The batches of one epoch, as image indices.

        Draws per class go with its number of photographs ** class_balance and add up to the number
        of images in the set (each class rounded at random). Within a class every photograph comes
        equally often, give or take one, and so does every image of a photograph, whether `prepare`
        made two images of it or four: FiT draws one of them at random (arXiv:2402.12376).
        """
        generator = np.random.default_rng((seed, epoch))
        drawn = generator.permutation(self._balanced_draws(class_balance, generator))
        chunks = self._equal_length_chunks(drawn, tokens_per_batch)
        batches: list[list[np.ndarray]] = [[]]
        tokens = 0
        for position in generator.permutation(len(chunks)):
            chunk = chunks[position]
            size = int(self.lengths[chunk].sum())
            if batches[-1] and tokens + size > tokens_per_batch:
                batches.append([])
                tokens = 0
            batches[-1].append(chunk)
            tokens += size
        return [np.concatenate(batch) for batch in batches]

    def _balanced_draws(self, class_balance: float, generator: np.random.Generator) -> np.ndarray:
        members = [np.flatnonzero(self.labels == c) for c in range(len(self.class_names))]
        sizes = [len(np.unique(self._photos[member])) for member in members]
        weights = np.array([size**class_balance if size else 0.0 for size in sizes])
        shares = weights / weights.sum() * len(self)
        counts = [int(share + generator.random()) for share in shares]
        pairs = zip(members, counts, strict=True)
        return np.concatenate([self._draws(member, n, generator) for member, n in pairs])

    def _draws(self, member: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
        """Draw `count` of a class's images, in rounds that take one image of every photograph.

        A photograph's images take turns in an order of their own; the last round may be a part.
        """
        shuffled = generator.permutation(member)
        shuffled = shuffled[np.argsort(self._photos[shuffled], kind="stable")]
        _, starts, sizes = np.unique(self._photos[shuffled], return_index=True, return_counts=True)
        rounds, rest = divmod(count, max(len(starts), 1))
        draws = [shuffled[starts + turn % sizes] for turn in range(rounds)]
        part = generator.permutation(len(starts))[:rest]
        return np.concatenate([*draws, shuffled[starts + rounds % sizes][part]])

    def _equal_length_chunks(self, images: np.ndarray, tokens_per_batch: int) -> list[np.ndarray]:
        chunks = []
        lengths = self.lengths[images]
        for length in np.unique(lengths):
            same = images[lengths == length]
            size = max(1, min(_CHUNK_IMAGES, tokens_per_batch // int(length)))
            chunks += [same[i : i + size] for i in range(0, len(same), size)]
        return chunks
