"""Bars of figures: one file for the resolutions, one for the classes.

Knows figures and matplotlib, which is the extra `plots`. Knows nothing of how they were measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from fit_training.evaluation.evaluate import ClassQuality
from fit_training.evaluation.resolution_table import COLUMNS, ResolutionFigures

_INCHES_A_BAR = 0.28
_GENERATED, _PHOTOGRAPHS = "#3b6fb6", "#b9bec7"


def require_matplotlib() -> None:
    """Raise `ValueError` if plots cannot be drawn, naming the extra that is missing."""
    if find_spec("matplotlib") is None:
        raise ValueError("plots: matplotlib is not installed; pip install 'fit-serve[plots]'")


def plot_resolutions(file: Path, rows: Sequence[ResolutionFigures]) -> None:
    """Write one panel for each column that has figures, a bar for each resolution (PNG).

    Raises:
        ValueError: there is no figure to draw, or no matplotlib.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    known = [name for name in COLUMNS if any(getattr(row, name) is not None for row in rows)]
    if not known:
        raise ValueError("plots: no figure of any resolution is known")
    height = 1.2 + _INCHES_A_BAR * len(rows)
    figure = Figure(figsize=(2.6 * len(known) + 1, height), layout="constrained")
    panels = figure.subplots(1, len(known), sharey=True, squeeze=False)[0]
    names = [row.resolution for row in rows]
    for panel, name in zip(panels, known, strict=True):
        values = [getattr(row, name) or 0.0 for row in rows]
        panel.barh(names, values, color=_GENERATED)
        panel.set_title(COLUMNS[name])
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].invert_yaxis()
    figure.savefig(file, dpi=150)


def plot_classes(file: Path, classes: Sequence[ClassQuality]) -> None:
    """Write the probe's accuracy of every class, pictures beside photographs (PNG).

    Raises:
        ValueError: there is no matplotlib.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    ordered = sorted(classes, key=lambda row: -row.generated)
    places = list(range(len(ordered)))
    figure = Figure(figsize=(7, 1.2 + _INCHES_A_BAR * len(ordered)), layout="constrained")
    panel = figure.subplots()
    photographs = [row.validation or 0.0 for row in ordered]
    pictures = [row.generated for row in ordered]
    panel.barh(places, photographs, 0.8, color=_PHOTOGRAPHS, label="validation photographs")
    panel.barh(places, pictures, 0.5, color=_GENERATED, label="pictures")
    panel.set_yticks(places, [row.name for row in ordered])
    panel.invert_yaxis()
    panel.set_xlim(0, 1)
    panel.set_xlabel("probe accuracy")
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(loc="lower right", frameon=False)
    figure.savefig(file, dpi=150)
