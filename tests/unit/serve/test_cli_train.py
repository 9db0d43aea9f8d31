"""`fit-serve train` reads the run, passes it on and shows how far it is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fit_serve.cli.command import app
from fit_training.loop import run
from fit_training.loop.config import TrainConfig

Report = Callable[[dict[str, Any]], None]


def test_the_run_of_the_file_is_trained_and_each_report_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[TrainConfig] = []

    def train(config: TrainConfig, on_progress: Report, resume: bool) -> Path:
        seen.append(config)
        assert resume
        on_progress({"step": 20, "loss": 0.5, "time": 1.0})
        on_progress({"step": 40, "loss": 0.25, "time": 2.0})
        return tmp_path / "checkpoint-00000040"

    monkeypatch.setattr(run, "train", train)
    file = tmp_path / "run.yaml"
    file.write_text("data: photos\noutput: out\nnum_steps: 100\nlearning_rate: 1e-3\n")
    result = CliRunner().invoke(app, ["train", str(file), "num_steps=40"], env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.output
    assert seen == [TrainConfig(data="photos", output="out", num_steps=40, learning_rate=1e-3)]
    assert result.stdout.splitlines() == [
        "training FiTv2-Ti/2 for 40 steps on photos",
        "step 20  loss 0.5",
        "step 40  loss 0.25",
        f"wrote {tmp_path / 'checkpoint-00000040'}",
    ]
    assert "40/40" in result.stderr


def test_of_torchruns_processes_only_the_first_one_shows_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def train(config: TrainConfig, on_progress: Report, resume: bool) -> Path:
        ran.append(config.output)
        return Path(config.output)

    monkeypatch.setattr(run, "train", train)
    file = tmp_path / "run.yaml"
    file.write_text("data: photos\noutput: out\n")
    first, second = (
        CliRunner().invoke(app, ["train", str(file)], env={"RANK": rank, "WORLD_SIZE": "2"})
        for rank in ("0", "1")
    )
    assert ran == ["out", "out"]
    assert "training" in first.stdout
    assert "training" in first.stderr
    assert (second.exit_code, second.stdout, second.stderr) == (0, "", "")


def test_a_setting_that_is_none_is_said_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("data: photos\noutput: out\n")
    result = CliRunner().invoke(app, ["train", str(file), "lerning_rate=1"])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: unknown training settings ['lerning_rate']")


def test_a_new_run_is_asked_for_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def train(config: TrainConfig, on_progress: Report, resume: bool) -> Path:
        seen.append(resume)
        return Path(config.output)

    monkeypatch.setattr(run, "train", train)
    file = tmp_path / "run.yaml"
    file.write_text("data: photos\noutput: out\n")
    for option in ("--resume", "--no-resume"):
        result = CliRunner().invoke(app, ["train", str(file), option])
        assert result.exit_code == 0, result.output
    assert seen == [True, False]
