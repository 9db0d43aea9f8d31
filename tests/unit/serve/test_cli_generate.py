"""`fit-serve generate` writes the images it was asked for, and says how to make them again."""

import json
import re
from pathlib import Path

import numpy
import pytest
from PIL import Image
from typer.testing import CliRunner

from fit_serve import app as app_module
from fit_serve.cli.command import app
from support.fake_engine import gradient
from support.fake_handle import BUNDLE, FakeHandle

ASKED = ["generate", "--class", "Sun Flower", "--height", "32", "--width", "48"]


@pytest.fixture(autouse=True)
def handles(monkeypatch: pytest.MonkeyPatch) -> list[FakeHandle]:
    made: list[FakeHandle] = []

    def build(bundle: object, config: object, telemetry: object) -> FakeHandle:
        made.append(FakeHandle(bundle, config, telemetry))
        return made[-1]

    monkeypatch.setattr(app_module, "load_bundle", lambda *_: BUNDLE)
    monkeypatch.setattr(app_module, "EngineHandle", build)
    return made


def run(*arguments: str) -> tuple[int, str, str]:
    """Give exit code, standard output and standard error."""
    result = CliRunner().invoke(app, [*ASKED, *arguments], env={"COLUMNS": "200"})
    return result.exit_code, result.stdout, result.stderr


def test_one_image_goes_to_the_file_with_its_parameters(
    tmp_path: Path, handles: list[FakeHandle]
) -> None:
    file = tmp_path / "out.png"
    code, said, shown = run("--seed", "7", "--steps", "3", "-o", str(file))
    assert (code, said) == (0, f"{file}  seed 7\n")
    assert "loading embedded" in shown
    with Image.open(file) as image:
        assert numpy.array_equal(numpy.asarray(image), gradient(32, 48, 7))
        parameters = json.loads(image.info["parameters"])
    assert (parameters["class"], parameters["num_inference_steps"]) == ("sunflower", 3)
    assert parameters["guidance_scale"] == BUNDLE.defaults.guidance_scale
    (handle,) = handles
    assert (handle.events[0], handle.events[-1]) == ("start", "stop")


def test_several_images_are_numbered_and_each_says_its_seed(tmp_path: Path) -> None:
    code, said, _ = run("-n", "2", "--seed", "7", "-o", str(tmp_path / "out.jpg"))
    assert code == 0
    assert said == f"{tmp_path / 'out-0.jpg'}  seed 7\n{tmp_path / 'out-1.jpg'}  seed 8\n"
    with Image.open(tmp_path / "out-1.jpg") as image:
        assert (image.format, image.size) == ("JPEG", (48, 32))


def test_a_seed_is_drawn_and_told(tmp_path: Path) -> None:
    file = tmp_path / "out.webp"
    _, said, _ = run("-o", str(file), "--guidance-interval", "0.1", "0.5")
    assert re.fullmatch(rf"{re.escape(str(file))}  seed \d+\n", said)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--height", "33"], "height 33 is not a multiple of 16; the nearest that are: 32 and 48"),
        (["--class", "sunflwer"], "did you mean sunflower?"),
        (["--guidance-scale", "nan"], "guidance_scale nan is outside the limits"),
        (["-n", "0"], "num_images 0 is below"),
        (["--device", "tpu"], "--device (FIT_SERVE_DEVICE) is 'tpu'"),
    ],
)
def test_what_cannot_be_made_is_said_before_the_engine_starts(
    tmp_path: Path, handles: list[FakeHandle], arguments: list[str], said: str
) -> None:
    code, _, shown = run("-o", str(tmp_path / "out.png"), *arguments)
    assert code == 2
    assert said in shown
    assert not any(handle.events for handle in handles)
