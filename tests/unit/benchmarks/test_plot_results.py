"""What was measured can be drawn: the committed ladder, and rows of a small simulation."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from support.benchmark_modules import load_benchmark
from support.repository import ROOT


@pytest.fixture(scope="module")
def plots() -> ModuleType:
    return load_benchmark("plot_results")


def test_a_ladder_is_drawn(plots: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "ladder.png"
    data = json.loads(
        (ROOT / "benchmarks" / "results" / "2026-11-25-ladder-embedded.json").read_text()
    )
    plots.plot_ladder(data, file)
    with Image.open(file) as picture:
        assert picture.width > 1000


def test_a_simulation_is_drawn(plots: ModuleType, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"policy": policy, "load": load, "goodput": {"1.5": 0.1, "3.0": 0.5, "10.0": 0.9}}
        for policy in ("fcfs", "deadline")
        for load in (0.3, 0.8)
    ]
    file = tmp_path / "simulation.png"
    plots.plot_simulation({"rows": rows}, file)
    with Image.open(file) as picture:
        assert picture.width > 1000
