"""Features of the photographs of a model's classes, computed once and kept.

Knows archives, the feature network and a cache folder. Knows nothing of models or measures.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from fit_training.evaluation.evaluate import LabelledFeatures
from fit_training.evaluation.feature_source import FeatureSource
from fit_training.preparation.decoding import BrokenPhotographError
from fit_training.preparation.sources.opening import open_photographs

OnProgress = Callable[[int, int], None]
_BATCH = 32


def archive_classes(archive: Path, class_names: Sequence[str]) -> tuple[str, ...]:
    """Give the archive's own names of a model's classes; case, spaces and underscores may differ.

    Raises:
        ValueError: the archive is unreadable or lacks a class.
    """
    with open_photographs(archive) as photographs:
        own = {_comparable(name): name for name in photographs.class_names}
    if missing := [name for name in class_names if _comparable(name) not in own]:
        raise ValueError(f"photographs: {archive} has no photo of {missing}")
    return tuple(own[_comparable(name)] for name in class_names)


def photograph_shapes(archive: Path, class_names: Sequence[str]) -> list[list[tuple[int, int]]]:
    """(height, width) in pixels of every photo, class by class."""
    shapes: list[list[tuple[int, int]]] = [[] for _ in class_names]
    with open_photographs(archive, archive_classes(archive, class_names)) as photographs:
        for photograph in photographs.photographs:
            shapes[photograph.label].append((photograph.height, photograph.width))
    return shapes


def photograph_features(
    archive: Path,
    class_names: Sequence[str],
    network: FeatureSource,
    cache: Path | None,
    on_progress: OnProgress,
) -> LabelledFeatures:
    """Features of all photos of the classes, labelled by position in `class_names`.

    Args:
        archive: what `open_photographs` reads: folder, zip, tar or parquet.
        class_names: of the model; see `archive_classes`.
        network: the one that measures.
        cache: folder where the features are kept under a digest of archive, classes and weights;
            None keeps nothing.
        on_progress: called with photos done, and of all.

    Raises:
        ValueError: as `archive_classes`.
    """
    names = archive_classes(archive, class_names)
    kept = None if cache is None else cache / f"features-{_digest(archive, names, network)}"
    if kept is not None and (path := kept.with_suffix(".safetensors")).is_file():
        tensors = load_file(path)
        on_progress(len(tensors["labels"]), len(tensors["labels"]))
        return LabelledFeatures(tensors["features"], tensors["labels"])
    features, labels = [], []
    with open_photographs(archive, names) as source:
        chosen = source.photographs
        for start in range(0, len(chosen), _BATCH):
            group = chosen[start : start + _BATCH]
            images = []
            for photograph in group:
                try:
                    pixels_HW3 = np.array(source.open(photograph))
                except BrokenPhotographError:
                    continue
                images.append(torch.from_numpy(pixels_HW3).permute(2, 0, 1))
                labels.append(photograph.label)
            if images:
                features.append(network.features(images))
            on_progress(start + len(group), len(chosen))
    if not features:
        raise ValueError(f"photographs: not one of the {len(chosen)} in {archive} can be read")
    result = LabelledFeatures(torch.cat(features), torch.tensor(labels))
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        tensors = {"features": result.features, "labels": result.labels}
        save_file(tensors, kept.with_suffix(".safetensors"))
    return result


def _digest(archive: Path, names: Sequence[str], network: FeatureSource) -> str:
    """Sixteen hex digits that change with the photos, the classes or the network's weights."""
    digest = hashlib.sha256()
    with open_photographs(archive, names) as source:
        digest.update(source.fingerprint().encode())
    digest.update("\n".join(names).encode())
    digest.update(network.fingerprint())
    return digest.hexdigest()[:16]


def _comparable(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()
