"""Plots of the ladder and of the simulation, from their JSON files.

Usage: `python benchmarks/plot_results.py ladder FILE.json FILE.png`, or `... simulation ...`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

_SCALES = ("1.5", "3.0", "10.0")


def plot_ladder(data: dict[str, Any], file: Path) -> None:
    """Requests a second at capacity and in time under load; and the latencies."""
    rows = data["rows"]
    names = [row["policy"] for row in rows]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.2), sharey=True)
    height = 0.38
    places = list(range(len(rows)))
    left.barh(
        [p - height / 2 for p in places],
        [row["requests_per_s"] for row in rows],
        height,
        label="all at once",
        color="#8da0cb",
    )
    left.barh(
        [p + height / 2 for p in places],
        [row["goodput"] for row in rows],
        height,
        label=f"in time at {data['offered_rate']:.2f} requests/s",
        color="#1b7837",
    )
    left.set_yticks(places, names)
    left.invert_yaxis()
    left.set_xlabel("requests/s")
    left.legend(loc="center right", fontsize=8)
    for share, colour in (("p99_s", "#d9d9d9"), ("p95_s", "#969696"), ("p50_s", "#252525")):
        right.barh(places, [row[share] for row in rows], 0.7, label=share[:3], color=colour)
    right.set_xlabel("seconds from arrival to picture, at that rate")
    right.legend(loc="lower right", fontsize=8)
    figure.suptitle(
        f"{data['model']}, {data['traffic']}, {data['device']}, {data['dtype']}; in time: "
        f"{data['slo_scale']:g} x the latency alone",
        fontsize=10,
    )
    _save(figure, file)


def plot_simulation(data: dict[str, Any], file: Path) -> None:
    """Share of the requests in time against the load, one panel for each SLO scale."""
    rows = data["rows"]
    figure, axes = pyplot.subplots(1, len(_SCALES), figsize=(13, 4.2), sharey=True)
    for axis, scale in zip(axes, _SCALES, strict=True):
        for policy in dict.fromkeys(row["policy"] for row in rows):
            points = sorted(
                (row["load"], row["goodput"][scale])
                for row in rows
                if row["policy"] == policy and scale in row["goodput"]
            )
            axis.plot(*zip(*points, strict=True), marker="o", label=policy)
        axis.set_title(f"SLO scale {float(scale):g}", fontsize=10)
        axis.set_xlabel("load")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("share in time")
    axes[0].set_ylim(0, 1)
    axes[-1].legend(fontsize=8)
    _save(figure, file)


def _save(figure: Any, file: Path) -> None:
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def main() -> None:
    """Read, plot, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("ladder", "simulation"))
    parser.add_argument("data", type=Path)
    parser.add_argument("picture", type=Path)
    arguments = parser.parse_args()
    data = json.loads(arguments.data.read_text(encoding="utf-8"))
    plot = plot_ladder if arguments.kind == "ladder" else plot_simulation
    plot(data, arguments.picture)


if __name__ == "__main__":
    main()
