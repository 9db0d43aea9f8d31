"""The columns of the papers' tables, one row for each resolution.

Knows features, a reference and what a row needs. Knows nothing of networks, files or engines.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from fit_training.evaluation.distribution_measures import (
    NEIGHBOURS,
    Normal,
    inception_score,
    precision_and_recall,
)
from fit_training.evaluation.feature_source import ImageFeatures
from fit_training.evaluation.reference_statistics import Reference

COLUMNS = {
    "fid": "FID",
    "sfid": "sFID",
    "inception_score": "IS",
    "precision": "Prec",
    "recall": "Rec",
}
_DECIMALS = {"fid": 2, "sfid": 2, "inception_score": 2, "precision": 3, "recall": 3}


@dataclass(frozen=True)
class ResolutionFigures:
    """A row; None where a figure is not to be had, and a note says why.

    Attributes:
        resolution: "HEIGHTxWIDTH" in pixels, or what else the images have in common.
        num_images: measured.
        fid, sfid: Frechet distances to the reference; the smaller, the better.
        inception_score: at least 1; the larger, the better.
        precision, recall: 0 to 1.
        notes: what to know about the figures.
    """

    resolution: str
    num_images: int
    fid: float | None = None
    sfid: float | None = None
    inception_score: float | None = None
    precision: float | None = None
    recall: float | None = None
    notes: tuple[str, ...] = ()


def measure_resolution(
    resolution: str, generated: ImageFeatures, reference: Reference
) -> ResolutionFigures:
    """Measure what can be measured.

    Raises:
        ValueError: features and reference have different channels.
    """
    count, channels = generated.pooled.shape
    notes = list(reference.notes)
    if count <= channels:
        notes.append(
            f"FID: {count} images for {channels} channels; few images read high, "
            "published figures are of 50 000"
        )
    shares = None
    if reference.features is not None and min(count, len(reference.features)) > NEIGHBOURS:
        shares = precision_and_recall(generated.pooled, reference.features)
    elif reference.features is not None:
        notes.append(f"precision, recall: sets of more than {NEIGHBOURS} images are needed")
    score = None
    if generated.logits is None:
        notes.append("IS: the feature network has no class scores")
    else:
        score = inception_score(generated.logits)
    return ResolutionFigures(
        resolution=resolution,
        num_images=count,
        fid=_distance(generated.pooled, reference.pooled),
        sfid=_distance(generated.spatial, reference.spatial),
        inception_score=score,
        precision=None if shares is None else shares.precision,
        recall=None if shares is None else shares.recall,
        notes=tuple(notes),
    )


def _distance(features: Tensor | None, reference: Normal | None) -> float | None:
    if features is None or reference is None or len(features) < 2:
        return None
    return Normal.fit(features).distance(reference)


def table_lines(rows: Sequence[ResolutionFigures]) -> Iterator[str]:
    """Say the rows as a table for a terminal, a dash for what is unknown, and the notes below."""
    widths = max(len("resolution"), *(len(row.resolution) for row in rows))
    titles = "".join(f"{title:>9}" for title in (*COLUMNS.values(), "n"))
    yield f"{'resolution':<{widths}}{titles}"
    for row in rows:
        cells = []
        for name, decimals in _DECIMALS.items():
            value = getattr(row, name)
            cells.append("-" if value is None else f"{value:.{decimals}f}")
        texts = "".join(f"{cell:>9}" for cell in (*cells, str(row.num_images)))
        yield f"{row.resolution:<{widths}}{texts}"
    for note in dict.fromkeys(note for row in rows for note in row.notes):
        yield f"  {note}"
