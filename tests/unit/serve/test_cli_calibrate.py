"""`fit-serve calibrate` measures and stores; `fit-serve doctor` shows what is stored."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fit_serve.cli.command import app
from support.toy_bundle import make_toy_bundle


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_toy_bundle(tmp_path_factory.mktemp("toy")))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def run(*arguments: str) -> tuple[int, str]:
    """Run the command in this process; give exit code and all that it printed, without colour."""
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200", "NO_COLOR": "1"})
    return result.exit_code, re.sub(r"\x1b\[[0-9;]*m", "", result.output)


def test_doctor_shows_what_calibrate_stored(model: str, cache: Path) -> None:
    on_cpu = ("--model", model, "--device", "cpu", "--dtype", "float32", "--num-threads", "1")
    code, text = run("doctor", *on_cpu)
    assert code == 0
    assert "not calibrated yet with 1 thread (fit-serve calibrate, or" in text

    code, text = run("calibrate", *on_cpu, "--seconds", "0.3")
    assert code == 0, text
    (file,) = cache.rglob("*.json")
    assert f"stored in {file}" in text
    assert re.search(r"64 +│ +\d+\.\d\d +│ +[\d,]+ +│ +\d+%", text), text
    assert text.count("knee") == 1
    found = re.search(r"^toy on .+, float32, 1 thread: ([\d,]+) tokens a step, .*$", text, re.M)
    assert found, text

    code, text = run("doctor", *on_cpu)
    assert code == 0
    assert f"calibration  {found[0]}" in text
    assert str(file) in text


def test_doctor_of_others_is_not_calibrated(model: str) -> None:
    asked = ("--model", model, "--dtype", "float32")
    run("calibrate", *asked, "--num-threads", "1", "--seconds", "0.1")
    for other in (("--num-threads", "2"), ("--num-threads", "1", "--dtype", "bfloat16")):
        assert "not calibrated yet" in run("doctor", *asked, *other)[1]


def test_without_a_place_to_store_it_is_measured_all_the_same(model: str, cache: Path) -> None:
    cache.touch()
    code, text = run("calibrate", "--model", model, "--seconds", "0.1")
    assert code == 0
    assert "not stored" in text
    assert "tokens a step" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--model", "/no/bundle"), "error: model '/no/bundle': /no/bundle is not a bundle"),
        (("--dtype", "int8"), "error: dtype 'int8' is unknown"),
        (("--seconds", "0"), "error: seconds is 0.0; it must be above 0 and finite"),
        (("--seconds", "nan"), "error: seconds is nan"),
        (("--num-threads", "-1"), "--num-threads"),
    ],
)
def test_bad_input_is_a_clear_error(model: str, arguments: tuple[str, ...], said: str) -> None:
    code, text = run("calibrate", "--model", model, *arguments)
    assert code == 2
    assert said in text
