"""The figures of `fit-serve evaluate`: what pictures are compared with, and the comparison.

Knows which figure needs what; formulas are those of `fit_training.evaluation`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy
    import torch

    from fit_training.evaluation.evaluate import LabelledFeatures, QualityReport
    from fit_training.evaluation.feature_source import FeatureSource, ImageFeatures
    from fit_training.evaluation.reference_statistics import Reference
    from fit_training.evaluation.resolution_table import ResolutionFigures


@dataclass(frozen=True)
class Comparison:
    """A feature network and all that it has seen beside the pictures.

    Attributes:
        source: the network.
        class_names: of the model.
        photographs: (training, validation), for the probe; None: no probe.
        reference: for the table; None: no reference file was given.
    """

    source: "FeatureSource"
    class_names: Sequence[str]
    photographs: "tuple[LabelledFeatures, LabelledFeatures] | None"
    reference: "Reference | None"

    @classmethod
    def prepare(
        cls,
        source: "FeatureSource",
        archives: tuple[Path, Path] | None,
        reference: Path | None,
        class_names: Sequence[str],
        cache: Path | None,
    ) -> "Comparison":
        """Look at the photographs and the reference; raises `ValueError` for what does not fit."""
        from fit_serve.cli.progress import progress_bar
        from fit_training.evaluation.photograph_features import photograph_features
        from fit_training.evaluation.reference_statistics import read_reference

        found = None
        if reference is not None:
            with progress_bar("reference features", "pictures") as advance:
                found = read_reference(reference, source, advance)
        sets = []
        for name, archive in zip(("training", "validation"), archives or (), strict=False):
            with progress_bar(f"{name} features", "photographs") as advance:
                sets.append(photograph_features(archive, class_names, source, cache, advance))
        return cls(source, class_names, (sets[0], sets[1]) if sets else None, found)


@dataclass(frozen=True)
class QualityFigures:
    """What was found: the probe's report if there are photographs, and the rows of the table."""

    quality: "QualityReport | None"
    rows: "Sequence[ResolutionFigures]"


def measure(
    comparison: Comparison,
    pictures: "Sequence[numpy.ndarray]",
    labels: Sequence[int],
    names: Sequence[str],
    table: bool,
) -> QualityFigures:
    """Compare pictures, uint8 [height, width, 3], with photographs and reference.

    Args:
        comparison: what with.
        pictures, labels: and the class each was asked for.
        names: of the row of the table each picture belongs to.
        table: whether to make rows without a reference file too, against the training photographs.
    """
    import torch

    from fit_training.evaluation.evaluate import LabelledFeatures, measure_quality
    from fit_training.evaluation.reference_statistics import Reference
    from fit_training.evaluation.resolution_table import measure_resolution

    seen = observed(comparison.source, pictures)
    reference = comparison.reference
    if reference is None and table and comparison.photographs is not None:
        reference = Reference.of_features(comparison.photographs[0].features)
    rows = []
    for name in dict.fromkeys(names) if reference is not None else ():
        members = torch.tensor([place for place, own in enumerate(names) if own == name])
        assert reference is not None
        rows.append(measure_resolution(name, part_of(seen, members), reference))
    if comparison.photographs is None:
        return QualityFigures(None, rows)
    generated = LabelledFeatures(seen.pooled, torch.tensor(labels))
    training, validation = comparison.photographs
    quality = measure_quality(generated, training, validation, comparison.class_names)
    return QualityFigures(quality, rows)


def observed(source: "FeatureSource", pictures: "Sequence[numpy.ndarray]") -> "ImageFeatures":
    """Features of all pictures, a few of them in memory at a time."""
    import torch

    from fit_serve.cli.progress import progress_bar
    from fit_training.evaluation.reference_statistics import observe_all

    images = (torch.from_numpy(pictures[place]).permute(2, 0, 1) for place in range(len(pictures)))
    with progress_bar("measuring", "pictures") as advance:
        return observe_all(source, images, len(pictures), advance)


def part_of(seen: "ImageFeatures", members: "torch.Tensor") -> "ImageFeatures":
    """Features of some of the images."""
    return replace(
        seen,
        pooled=seen.pooled[members],
        spatial=None if seen.spatial is None else seen.spatial[members],
        logits=None if seen.logits is None else seen.logits[members],
    )
