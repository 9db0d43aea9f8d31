"""What generated images are compared with: statistics and pictures of a `.npz`, or photographs.

Knows the files' entries and what can be measured with them. Knows nothing of generated images.

The entries, all optional: `mu` [C] and `sigma` [C, C] of pooled features (clean-fid,
torch-fidelity, ADM), `mu_s` and `sigma_s` of spatial features (ADM), `arr_0` (ADM): pictures, for
precision and recall, and for what the statistics do not say.

Dimension key: m images of the reference, C channels of a feature.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fit_training.evaluation.distribution_measures import Normal
from fit_training.evaluation.feature_source import FeatureSource, ImageFeatures
from fit_training.evaluation.picture_arrays import count_pictures, has_pictures, read_pictures

OnProgress = Callable[[int, int], None]
_CHUNK = 64
_PROBE_SIDE = 64


@dataclass(frozen=True)
class Reference:
    """Each part may be missing.

    Attributes:
        pooled: of pooled features, for FID.
        spatial: of spatial features, for sFID.
        features: pooled features [m, C], for precision and recall.
        notes: why parts are missing or where they are from.
    """

    pooled: Normal | None = None
    spatial: Normal | None = None
    features: Tensor | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def of_features(cls, features: Tensor) -> Reference:
        """Of photographs' pooled features [m, C]."""
        return cls(
            Normal.fit(features), None, features, ("sFID: photographs have no spatial features",)
        )


def read_reference(path: Path, source: FeatureSource, on_progress: OnProgress) -> Reference:
    """Read a reference for figures of one feature network.

    Statistics of other numbers of channels than the network's are left out.

    Args:
        path: the `.npz`.
        source: the network; it looks at the pictures of the file, if there are any.
        on_progress: called with pictures seen, and of all.

    Raises:
        ValueError: the file is missing or no `.npz`, or nothing in it fits the network.
    """
    if not path.is_file() or not zipfile.is_zipfile(path):
        raise ValueError(f"reference: {path} is no .npz file")
    blank = torch.zeros(3, _PROBE_SIDE, _PROBE_SIDE, dtype=torch.uint8)
    probe = source.observe([blank])
    seen: ImageFeatures | None = None
    if has_pictures(path):
        images = (torch.from_numpy(pixels).permute(2, 0, 1) for pixels in read_pictures(path))
        seen = observe_all(source, images, count_pictures(path), on_progress)
    notes: list[str] = []
    pooled = _statistics(path, "mu", "sigma", probe.pooled, seen and seen.pooled, notes)
    spatial = _statistics(path, "mu_s", "sigma_s", probe.spatial, seen and seen.spatial, notes)
    if pooled is None and spatial is None and seen is None:
        raise ValueError(f"reference: nothing in {path} fits {source.name}: {'; '.join(notes)}")
    if seen is None:
        notes.append(f"precision, recall: {path.name} has no pictures (arr_0)")
    return Reference(pooled, spatial, None if seen is None else seen.pooled, tuple(notes))


def observe_all(
    source: FeatureSource, images: Iterable[Tensor], count: int, on_progress: OnProgress
) -> ImageFeatures:
    """Features of `count` uint8 images [3, height, width], a few of them in memory at a time."""
    parts: list[ImageFeatures] = []
    done = 0
    for group in _chunks(images):
        parts.append(source.observe(group))
        done += len(group)
        on_progress(done, count)
    return ImageFeatures.joined(parts)


def _chunks(images: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    iterator = iter(images)
    while group := list(islice(iterator, _CHUNK)):
        yield group


def _statistics(
    path: Path,
    mean: str,
    covariance: str,
    probe: Tensor | None,
    seen: Tensor | None,
    notes: list[str],
) -> Normal | None:
    """The file's statistics if they fit, else those of its pictures, else a note and None."""
    measure = "FID" if mean == "mu" else "sFID"
    if probe is None:
        notes.append(f"{measure}: the feature network has no spatial features")
        return None
    with np.load(path, allow_pickle=False) as file:
        known = {mean, covariance} <= set(file.files)
        if known and file[mean].shape == (probe.shape[1],):
            return Normal(
                torch.from_numpy(file[mean]).double(), torch.from_numpy(file[covariance]).double()
            )
        reason = (
            f"{mean} of {path.name} has {file[mean].size} channels, the feature network "
            f"{probe.shape[1]}"
            if known
            else f"{path.name} has no {mean} and {covariance}"
        )
    if seen is not None and len(seen) > 1:
        notes.append(f"{measure}: {reason}; taken from its {len(seen)} pictures")
        return Normal.fit(seen)
    notes.append(f"{measure}: {reason}")
    return None
