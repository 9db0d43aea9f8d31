"""`fit-serve export` writes a bundle that loads, and does not overwrite one unasked."""

from pathlib import Path

import pytest
from typer import Typer
from typer.testing import CliRunner

from fit_models.bundle import SamplingDefaults, load_bundle
from fit_models.config import named_config
from fit_models.networks.fitv2 import FiTv2
from fit_serve.cli.export import export
from fit_training.loop.checkpoints import save_checkpoint
from support.small_autoencoders import write_small_autoencoder

NAMES = ("ant", "bee")


@pytest.fixture
def sources(tmp_path: Path) -> list[str]:
    network = FiTv2(named_config("FiTv2-toy/2", len(NAMES)))
    network.initialize()
    state = {
        "config": {"model": "FiTv2-toy/2", "classes": NAMES},
        "averaged": network.state_dict(),
        "latents": [0.0, 1.0],
        "progress": [3, 0, 0, 42],
    }
    checkpoint = save_checkpoint(tmp_path, 3, state, keep=1)
    write_small_autoencoder(tmp_path / "autoencoder")
    return [
        str(checkpoint),
        f"--autoencoder={tmp_path / 'autoencoder'}",
        "--name=small",
    ]


def run(*arguments: str) -> tuple[Exception | None, str]:
    """Give the error that ended the command, if any, and what it printed."""
    app = Typer()
    app.command()(export)
    result = CliRunner().invoke(app, arguments)
    error = result.exception
    return error if isinstance(error, Exception) else None, result.output


def test_the_bundle_has_the_defaults_it_was_given(tmp_path: Path, sources: list[str]) -> None:
    how = ["--steps", "9", "--guidance-scale", "3.5", "--guidance-interval", "0.25", "0.75"]
    error, said = run(*sources, str(tmp_path / "bundle"), *how, "--guided-channels", "4")
    assert error is None
    assert "small, 2 classes, " in said
    assert said.endswith("after 42 images\n")
    bundle = load_bundle(str(tmp_path / "bundle"))
    assert bundle.defaults == SamplingDefaults(9, 3.5, (0.25, 0.75), "euler")
    assert bundle.model_config.guided_channels == 4


def test_class_names_may_come_from_a_file(tmp_path: Path, sources: list[str]) -> None:
    (tmp_path / "names.txt").write_text("x\ny\n")
    run(*sources, str(tmp_path / "bundle"), "--classes", str(tmp_path / "names.txt"))
    assert load_bundle(str(tmp_path / "bundle")).class_names == ("x", "y")


def test_a_bundle_is_replaced_only_when_asked(tmp_path: Path, sources: list[str]) -> None:
    destination = str(tmp_path / "bundle")
    assert run(*sources, destination)[0] is None
    error, _ = run(*sources, destination)
    assert "already holds a bundle" in str(error)
    assert run(*sources, destination, "--replace")[0] is None


def test_bad_defaults_leave_the_old_bundle_alone(tmp_path: Path, sources: list[str]) -> None:
    destination = tmp_path / "bundle"
    run(*sources, str(destination))
    for wrong in (["--sampler=magic"], ["--classes=/no/file"]):
        error, _ = run(*sources, str(destination), "--replace", *wrong)
        assert error is not None
    assert load_bundle(str(destination)).name == "small"
