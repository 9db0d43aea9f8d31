"""What `fit-serve evaluate` writes and says: contact sheet, arrays, plots, a few lines.

Knows files and wording; the figures are those of `fit_training.evaluation`.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy

    from fit_training.evaluation.evaluate import QualityReport
    from fit_training.evaluation.resolution_table import ResolutionFigures

SHEET_COLUMNS = 8


def write_contact_sheet(
    file: Path,
    pictures: "Sequence[numpy.ndarray]",
    labels: Sequence[int],
    class_names: Sequence[str],
) -> None:
    """Write the first pictures of every class, one class a row."""
    from fit_training.evaluation.contact_sheet import SheetRow, contact_sheet

    rows = []
    for label, name in enumerate(class_names):
        of_class = [number for number, own in enumerate(labels) if own == label]
        rows.append(SheetRow(name, [pictures[number] for number in of_class[:SHEET_COLUMNS]]))
    contact_sheet(rows).save(file, optimize=True)


def write_arrays(
    folder: Path, pictures: "Sequence[numpy.ndarray]", resolutions: Sequence[tuple[int, int]]
) -> None:
    """Write one `.npz` for each resolution; the pictures lie resolution by resolution."""
    from fit_training.evaluation.picture_arrays import write_pictures

    folder.mkdir(parents=True, exist_ok=True)
    each = len(pictures) // len(resolutions)
    for number, (height, width) in enumerate(resolutions):
        own = (pictures[place] for place in range(number * each, (number + 1) * each))
        write_pictures(folder / f"{height}x{width}.npz", own, each, height, width)


def write_plots(
    folder: Path, rows: "Sequence[ResolutionFigures]", quality: "QualityReport | None"
) -> None:
    """Write `resolutions.png` and `classes.png`, those of which there are figures."""
    from fit_training.evaluation.quality_plots import plot_classes, plot_resolutions

    folder.mkdir(parents=True, exist_ok=True)
    if rows:
        plot_resolutions(folder / "resolutions.png", rows)
    if quality is not None:
        plot_classes(folder / "classes.png", quality.classes)


def summary(quality: "QualityReport | None", rows: "Sequence[ResolutionFigures]") -> Iterable[str]:
    """Say the figures in a few lines."""
    if rows:
        from fit_training.evaluation.resolution_table import table_lines

        yield from table_lines(rows)
    if quality is not None:
        yield from probe_summary(quality)


def probe_summary(quality: "QualityReport") -> Iterable[str]:
    """Say what the probe found, worst classes first."""
    yield (
        f"probe accuracy {quality.generated_accuracy:.1%} of {quality.num_generated} pictures, "
        f"{quality.validation_accuracy:.1%} of validation photos: "
        f"{quality.relative_accuracy:.1%} of theirs"
    )
    frechet = quality.frechet
    yield (
        f"Frechet distance to training photos ({frechet.num_images} images a set): pictures "
        f"{frechet.generated:.1f}, validation photos {frechet.validation:.1f}, "
        f"held-out training photos {frechet.held_out:.1f}"
    )
    yield (
        f"distance to the nearest training photo, median: pictures "
        f"{quality.nearest_generated['p50']:.3f}, validation photos "
        f"{quality.nearest_validation['p50']:.3f}; "
        f"{quality.closer_than_most_photographs:.1%} of pictures nearer than 95 % of those"
    )
    worst = sorted(quality.classes, key=lambda row: row.generated)[:8]
    yield "worst classes: " + ", ".join(f"{row.name} {row.generated:.0%}" for row in worst)
