"""The profile is written, read back with the bundle, and its cost is told."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fit_models.bundle import PROFILE, load_bundle
from fit_models.diffusion.step_cache import GENERIC_PROFILE
from fit_serve.cli.command import app
from support.toy_bundle import make_toy_bundle


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_toy_bundle(tmp_path / "toy")


def test_a_profile_becomes_the_bundles_own(folder: Path) -> None:
    assert load_bundle(str(folder)).profile is GENERIC_PROFILE
    asked = ["calibrate-cache", "--model", str(folder), "--num-sequences", "2"]
    result = CliRunner().invoke(app, [*asked, "--num-steps", "6", "--num-images", "2"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout.splitlines()[-1])
    assert told["model"] == "toy"
    found = {(row["rule"], row["order"], row["quality"]) for row in told["qualities"]}
    assert len(found) == len(told["qualities"]) == 8
    assert all(0 < row["work"] <= 1 for row in told["qualities"])
    profile = load_bundle(str(folder)).profile
    assert profile is not GENERIC_PROFILE
    assert profile.to_dict() == json.loads((folder / PROFILE).read_text())


def test_a_broken_profile_is_named(folder: Path) -> None:
    (folder / PROFILE).write_text('{"sigmas": [0.1]}')
    with pytest.raises(ValueError, match="step cache profile: KeyError"):
        load_bundle(str(folder))


def test_no_bundle_is_one_line() -> None:
    result = CliRunner().invoke(app, ["calibrate-cache", "--model", "/no/such"])
    assert result.exit_code == 2
    assert "is not a bundle" in result.output
