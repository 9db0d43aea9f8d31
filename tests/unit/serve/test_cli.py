"""The command is there at once, and says what a user can mend in one line."""

import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fit_serve.cli.command import app
from fit_serve.cli.doctor import software
from fit_serve.cli.generate import format_of, summed
from fit_serve.cli.prepare import read_class_names
from fit_serve.cli.train import progress_line
from fit_serve.errors import InvalidRequest, Overloaded
from fit_serve.request import Progress
from fit_serve.settings import Settings, flag_of

HEAVY = ("torch", "diffusers", "fastapi", "uvicorn", "numpy", "fit_models", "fit_training")

SUBCOMMANDS = (
    "serve",
    "generate",
    "prepare",
    "train",
    "train-autoencoder",
    "export",
    "evaluate",
    "bench",
    "calibrate",
    "doctor",
)


def run(*arguments: str) -> tuple[int, str]:
    """Run the command in this process; give exit code and all that it printed, without colour."""
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200", "NO_COLOR": "1"})
    return result.exit_code, re.sub(r"\x1b\[[0-9;]*m", "", result.output)


def test_help_imports_nothing_heavy() -> None:
    code = f"import sys, fit_serve.cli; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_lists_every_subcommand() -> None:
    code, text = run("--help")
    assert code == 0
    for name in (
        "serve",
        "generate",
        "prepare",
        "train",
        "train-autoencoder",
        "evaluate",
        "bench",
        "calibrate",
        "doctor",
    ):
        assert re.search(rf"^\W*{name}\b", text, re.MULTILINE), name


def test_the_version_is_that_of_the_package() -> None:
    code, text = run("--version")
    assert code == 0
    assert re.fullmatch(r"fit-serve \d+\.\d+\.\d+\n", text)


def test_every_setting_is_a_flag_of_serve_with_its_default() -> None:
    code, text = run("serve", "--help")
    assert code == 0
    words = " ".join(text.split())
    for name, field in Settings.model_fields.items():
        told = f"{field.description} Default: {field.default}."
        expected = field.description if field.default is None else told
        value = f"/ {flag_of('no_' + name)}" if field.annotation is bool else r"\S+"
        assert re.search(rf"{flag_of(name)} {value} {re.escape(expected or '')}", words), name


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["serve", "--port", "http"], "--port (FIT_SERVE_PORT) is 'http'"),
        (["serve", "--host", "203.0.113.1", "--port", "0"], "host 203.0.113.1, port 0: "),
        (
            ["generate", "--class", "1", "--height", "32", "--width", "32", "-o", "a.gif"],
            "a.gif has no known ending",
        ),
        (
            ["generate", "--class", "1", "--height", "32", "--width", "32", "-o", "/no/a.png"],
            "there is no such folder",
        ),
        (["train", "/no/config.yaml"], "No such file or directory: /no/config.yaml"),
    ],
)
def test_an_error_of_the_user_is_one_line_and_exit_code_2(arguments: list[str], said: str) -> None:
    code, text = run(*arguments)
    assert (code, text.count("\n")) == (2, 1)
    assert text.startswith("error: ")
    assert said in text


def test_an_unknown_flag_is_an_error() -> None:
    assert run("serve", "--prot", "80")[0] == 2
    assert run("fly")[0] == 2


def test_a_refusal_of_the_engine_is_not_the_users_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise Overloaded("the queue is full", 1.0)

    monkeypatch.setattr("fit_serve.cli.serve.load_settings", refuse)
    assert run("serve") == (1, "error: the queue is full\n")


def test_a_traceback_is_there_for_those_who_ask() -> None:
    result = CliRunner().invoke(app, ["--traceback", "serve", "--port", "http"])
    assert isinstance(result.exception, ValueError)


def test_python_dash_m_is_the_same_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fit_serve", "--version"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    assert done.stdout.startswith("fit-serve ")


@pytest.mark.parametrize(
    ("name", "output_format"), [("a.png", "png"), ("a.JPG", "jpeg"), ("b.webp", "webp")]
)
def test_the_ending_of_the_file_is_the_format(
    tmp_path: Path, name: str, output_format: str
) -> None:
    assert format_of(tmp_path / name) == output_format
    with pytest.raises(InvalidRequest):
        format_of(tmp_path / "a.tiff")


def test_progress_sums_over_the_images() -> None:
    seen: list[tuple[int, int]] = []
    report = summed(lambda done, total: seen.append((done, total)), num_images=2)
    for name, done in (("a", 1), ("a", 2), ("b", 5)):
        report(Progress(name, done, 10))
    assert seen == [(1, 20), (2, 20), (7, 20)]


def test_class_names_are_one_a_line(tmp_path: Path) -> None:
    file = tmp_path / "classes.txt"
    file.write_text("ant\n\n car side \n")
    assert read_class_names(file) == ("ant", "car side")
    file.write_text("\n")
    with pytest.raises(ValueError, match="names no class"):
        read_class_names(file)


def test_a_report_of_training_is_one_line_without_the_time() -> None:
    row = {"step": 20, "flow": 0.123456, "time": 1.0}
    assert progress_line(row) == "step 20  flow 0.1235"


def test_doctor_names_every_package_with_its_version_or_that_it_is_missing() -> None:
    facts = dict(software())
    assert facts["torch"] == version("torch")
    assert all(facts[name] for name in ("python", "fit-serve", "triton"))
