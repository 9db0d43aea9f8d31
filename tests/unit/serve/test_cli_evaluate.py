"""`fit-serve evaluate` makes pictures with the engine and says how good they are."""

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from fit_serve import app as app_module
from fit_serve.cli.command import app
from support.fake_handle import BUNDLE, FakeHandle
from support.feature_weights import write_feature_weights
from support.photograph_archives import write_archive

CLASSES = ("Airplane", "sunflower", "car_side", "sea_horse", "crane, bird", "crane, machine")


@pytest.fixture
def handles(monkeypatch: pytest.MonkeyPatch) -> list[FakeHandle]:
    """An engine of gradients; and no Frechet distance, which takes seconds in 1280 dimensions."""
    monkeypatch.setattr("fit_training.evaluation.evaluate.frechet_distance", lambda *_: 1.5)
    made: list[FakeHandle] = []

    def build(bundle: object, config: object, telemetry: object) -> FakeHandle:
        made.append(FakeHandle(bundle, config, telemetry))
        return made[-1]

    monkeypatch.setattr(app_module, "load_bundle", lambda *_: BUNDLE)
    monkeypatch.setattr(app_module, "EngineHandle", build)
    return made


@pytest.fixture
def sources(tmp_path: Path) -> list[str]:
    photographs = [(name, 40, 30) for name in CLASSES for _ in range(3)]
    write_archive(tmp_path / "train.zip", photographs)
    write_archive(tmp_path / "val.zip", photographs[::3])
    write_feature_weights(tmp_path / "features.safetensors")
    return [
        f"--photographs={tmp_path / 'train.zip'}",
        f"--validation={tmp_path / 'val.zip'}",
        f"--feature-network={tmp_path / 'features.safetensors'}",
    ]


def test_the_report_says_what_was_asked_and_what_was_found(
    tmp_path: Path, sources: list[str], handles: list[FakeHandle]
) -> None:
    report, sheet = tmp_path / "report.json", tmp_path / "sheet.png"
    arguments = ["-n", "2", "--seed", "5", "--guidance-scale", "4.5"]
    files = ["--report", str(report), "--contact-sheet", str(sheet)]
    result = CliRunner().invoke(app, ["evaluate", *sources, *arguments, *files])
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout.splitlines()[-1])
    assert json.loads(report.read_text()) == figures
    assert (figures["model"], figures["seed"], figures["guidance_scale"]) == ("tiny", 5, 4.5)
    assert figures["num_inference_steps"] == BUNDLE.defaults.num_inference_steps
    assert figures["num_generated"] == 12
    assert figures["frechet"]["num_images"] == 12
    assert [row["name"] for row in figures["classes"]] == list(BUNDLE.class_names)
    assert "probe accuracy" in result.stderr
    (handle,) = handles
    assert [s.class_label for s in handle.submitted] == [c for c in range(6) for _ in range(2)]
    assert [s.seed for s in handle.submitted] == list(range(5, 17))
    assert (handle.events[0], handle.events[-1]) == ("start", "stop")
    with Image.open(sheet) as image:
        assert image.height > image.width  # six classes below one another, two pictures each


def test_a_class_without_photographs_is_said_before_the_engine_starts(
    tmp_path: Path, sources: list[str], handles: list[FakeHandle]
) -> None:
    write_archive(tmp_path / "train.zip", [("airplane", 40, 30)])
    result = CliRunner().invoke(app, ["evaluate", *sources])
    assert result.exit_code == 2
    assert "has no photo of ['sunflower'" in result.stderr
    assert not any(handle.events for handle in handles)
