"""`fit-serve post-train` from a YAML file to a bundle, and what it says of bad settings."""

from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from fit_models.bundle import load_bundle
from fit_serve.cli.command import app
from support.toy_bundle import make_toy_bundle
from support.toy_post_run import toy_post_run, write_data


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    base, data = make_toy_bundle(tmp_path / "base"), write_data(tmp_path / "data")
    config = toy_post_run(base, data, tmp_path / "run", "few-step")
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(config).items()}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_it_writes_a_bundle_and_says_where(settings: Path):
    result = CliRunner().invoke(app, ["post-train", str(settings), "num_steps=2"])
    assert result.exit_code == 0, result.output
    bundle = settings.parent / "run" / "bundle"
    assert f"wrote {bundle}" in result.output
    assert load_bundle(str(bundle)).defaults.num_inference_steps == 2


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("method=sft", "error: method is 'sft'; known: full, high-resolution, lora, few-step"),
        ("model=FiTv2-XL/2", "error: unknown training settings ['model']"),
        ("base=/nowhere", "error: model '/nowhere': /nowhere is not a bundle"),
        ("alignment_block=9", "error: alignment_block is 9; the network has"),
    ],
)
def test_bad_settings_are_said_in_one_line(settings: Path, override: str, said: str):
    result = CliRunner().invoke(app, ["post-train", str(settings), override])
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith(said)


def test_base_and_method_must_be_given(settings: Path):
    settings.write_text("data: d\noutput: o\n")
    result = CliRunner().invoke(app, ["post-train", str(settings)])
    assert result.exit_code == 2
    assert "training settings ['base', 'method'] are missing" in result.output
