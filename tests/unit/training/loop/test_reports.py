"""Every scalar is in the log and in TensorBoard; a run that goes on continues both."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fit_training.loop.reports import RunReports


def _rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def _tensorboard(folder: Path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return events


def test_a_row_is_a_line_of_json_and_told_to_the_listener(tmp_path: Path):
    told: list[dict[str, float]] = []
    with RunReports(tmp_path, False, on_row=told.append, clock=lambda: 5.0) as reports:
        row = reports.scalars(3, {"loss": 0.5, "epoch": 1})
        reports.scalars(4, {"loss": 0.25})
    assert row == {"step": 3, "time": 5.0, "loss": 0.5, "epoch": 1}
    assert _rows(tmp_path) == told == [row, {"step": 4, "time": 5.0, "loss": 0.25}]


def test_without_tensorboard_there_is_the_log_alone(tmp_path: Path):
    with RunReports(tmp_path, False) as reports:
        reports.scalars(1, {"loss": 0.5})
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def test_tensorboard_has_the_scalars_and_the_pictures(tmp_path: Path):
    grid = Image.fromarray(np.full((6, 9, 3), 80, np.uint8))
    with RunReports(tmp_path, True) as reports:
        reports.scalars(1, {"loss": 0.5})
        reports.scalars(2, {"loss": 0.25})
        path = reports.pictures(400, grid)
    events = _tensorboard(tmp_path)
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 0.5), (2, 0.25)]
    (image,) = events.Images("samples")
    assert (image.step, image.width, image.height) == (400, 9, 6)
    assert path == tmp_path / "samples" / "step-000400.png"
    with Image.open(path) as saved:
        assert np.array_equal(np.asarray(saved), np.asarray(grid))


def test_a_run_that_goes_on_hides_what_was_lost_and_keeps_the_rest(tmp_path: Path):
    with RunReports(tmp_path, True) as reports:
        for step in (1, 2, 3):
            reports.scalars(step, {"loss": 1.0})
    with RunReports(tmp_path, True, resumed_at=2) as reports:  # 3 came after the checkpoint
        reports.scalars(3, {"loss": 2.0})
    values = [(e.step, e.value) for e in _tensorboard(tmp_path).Scalars("loss")]
    assert values == [(1, 1.0), (2, 1.0), (3, 2.0)]
    assert [row["loss"] for row in _rows(tmp_path)] == [1.0, 1.0, 1.0, 2.0]


def test_tensorboard_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match="tensorboard is true but not installed"):
        RunReports(tmp_path, True)
