"""`fit-serve evaluate` makes pictures with the engine and says how good they are."""

import json
import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
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


def write_reference(path: Path) -> Path:
    made = np.random.default_rng(0).integers(0, 256, (12, 32, 48, 3), dtype=np.uint8)
    np.savez(path, made)
    return path


@pytest.fixture
def without_photographs(tmp_path: Path) -> list[str]:
    class MeanColour(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.float().mean(dim=(2, 3))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(MeanColour()).save(str(tmp_path / "colour.pt"))
    return [
        f"--reference={write_reference(tmp_path / 'reference.npz')}",
        f"--feature-network={tmp_path / 'colour.pt'}",
        "--sizes=32x48,64x32",
    ]


def test_a_reference_gives_a_row_for_each_resolution(
    tmp_path: Path, without_photographs: list[str], handles: list[FakeHandle]
) -> None:
    files = [f"--npz={tmp_path / 'arrays'}", f"--contact-sheet={tmp_path / 'sheet.png'}"]
    result = CliRunner().invoke(app, ["evaluate", *without_photographs, "-n", "2", *files])
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout.splitlines()[-1])
    assert [row["resolution"] for row in figures["resolutions"]] == ["32x48", "64x32"]
    for row in figures["resolutions"]:
        assert row["num_images"] == 12
        assert row["fid"] > 0
        assert 0 <= row["precision"] <= 1
        assert row["sfid"] is None
    assert "generated_accuracy" not in figures
    assert re.search(r"resolution +FID +sFID +IS +Prec +Rec +n", result.stderr)
    with np.load(tmp_path / "arrays" / "64x32.npz") as file:
        assert file["arr_0"].shape == (12, 64, 32, 3)
    (handle,) = handles
    assert [s.seed for s in handle.submitted] == [*range(12), *range(12)]
    assert [s.class_label for s in handle.submitted[:12]] == [*range(6), *range(6)]


def test_finished_pictures_are_not_made_again(
    tmp_path: Path,
    without_photographs: list[str],
    handles: list[FakeHandle],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weight = torch.ones(2, 2)
    network = SimpleNamespace(parameters=lambda: iter([weight]))
    bundle = SimpleNamespace(**vars(BUNDLE), network=network)
    monkeypatch.setattr(app_module, "load_bundle", lambda *_: bundle)
    folder = tmp_path / "pictures"
    asked = ["evaluate", *without_photographs, f"--pictures={folder}"]

    first = CliRunner().invoke(app, [*asked, "-n", "1"])
    assert first.exit_code == 0, first.output
    assert len(list(folder.glob("*/*.png"))) == 12
    (folder / "32x48" / "class0003-seed3.png").unlink()
    again = CliRunner().invoke(app, [*asked, "-n", "1"])
    assert again.exit_code == 0, again.output
    assert again.stdout.splitlines()[-1] == first.stdout.splitlines()[-1]
    assert [(s.class_label, s.seed, s.height) for s in handles[1].submitted] == [(3, 3, 32)]
    more = CliRunner().invoke(app, [*asked, "-n", "2"])
    assert more.exit_code == 0, more.output
    assert [s.seed for s in handles[2].submitted] == [*range(6, 12), *range(6, 12)]
    whole = CliRunner().invoke(app, [*asked, "-n", "2"])
    assert whole.exit_code == 0, whole.output
    assert handles[3].events == []  # nothing to make: the engine is not started

    other = CliRunner().invoke(app, [*asked, "-n", "2", "--guidance-scale", "4"])
    assert other.exit_code == 2
    assert "were made with guidance_scale 3.0, not 4.0" in other.stderr
    weight[0] = 2
    trained = CliRunner().invoke(app, [*asked, "-n", "2"])
    assert trained.exit_code == 2
    assert "were made with weights" in trained.stderr
    assert not list(folder.glob("**/.*.part"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "reference: --reference, or --photographs and --validation, are needed"),
        (["--photographs=a.zip"], "validation: --photographs and --validation go together"),
        (["--reference=a.npz"], "sizes: without photographs"),
        (["--photographs=a", "--validation=b", "--npz=c"], "npz: an array holds pictures of one"),
        (["--reference=a.npz", "--sizes=32"], "sizes: '32' is no HEIGHTxWIDTH"),
        (["--reference=a.npz", "--sizes=32x32,32x32"], "names a resolution twice"),
    ],
)
def test_options_that_lack_one_another_are_said_at_once(
    options: list[str], said: str, handles: list[FakeHandle]
) -> None:
    result = CliRunner().invoke(app, ["evaluate", "--feature-network=none", *options])
    assert result.exit_code == 2
    assert said in result.stderr
    assert not handles
