"""`fit-serve convert`: the direction is told by the source; the flags reach the bundle."""

from pathlib import Path

import pytest
from safetensors.torch import load_file
from typer import Typer
from typer.testing import CliRunner

from fit_models.bundle import SamplingDefaults, load_bundle
from fit_serve.cli.convert import convert
from support.released_files import same_bits, write_released
from support.small_autoencoders import write_small_autoencoder
from support.toy_bundle import make_toy_network


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, str]:
    state = make_toy_network().state_dict()
    write_small_autoencoder(tmp_path / "vae")
    return {
        "safetensors": str(write_released(tmp_path / "model_ema.bin", state)),
        "pickle": str(write_released(tmp_path / "model.safetensors", state, "zip")),
        "autoencoder": f"--autoencoder={tmp_path / 'vae'}",
    }


def run(*arguments: str) -> tuple[str, str]:
    """Give what the error that ended the command says, if any, and what it printed."""
    app = Typer()
    app.command()(convert)
    result = CliRunner().invoke(app, arguments)
    error = result.exception
    return str(error) if isinstance(error, Exception) else "", result.output


def test_there_and_back(tmp_path: Path, sources: dict[str, str]) -> None:
    bundle, out = str(tmp_path / "bundle"), str(tmp_path / "out.safetensors")
    error, said = run(sources["safetensors"], bundle, sources["autoencoder"])
    assert error == ""
    for told in (
        "model_ema.bin: sha256 ",
        "container: safetensors; stripped: nothing",
        "matched: 41 tensors (41 float32), 100,248 elements; largest global_adaLN",
        "size: FiTv2-toy/2; hidden_size 48, depth 2, num_heads 2,",
        "2 heads, rope normal",
        "read back bit for bit and loaded",
    ):
        assert told in said, said
    error, said = run(bundle, out)
    assert error == ""
    assert f"wrote {out}: 41 tensors (41 float32), 100,248 elements" in said
    assert same_bits(load_file(out), load_file(sources["safetensors"]))


def test_flags_reach_the_bundle(tmp_path: Path, sources: dict[str, str]) -> None:
    (tmp_path / "names.txt").write_text("ant\nbee\ncar\n")
    how = ["--name=mine", f"--classes={tmp_path / 'names.txt'}", "--hr", "--dtype=bfloat16"]
    how += ["--num-heads=4", "--guided-channels=4", "--steps=7", "--guidance-scale=2.5"]
    how += ["--guidance-interval", "0.25", "0.75", "--sampler=heun", "--allow-pickle"]
    error, said = run(sources["pickle"], str(tmp_path / "b"), sources["autoencoder"], *how)
    assert error == ""
    assert "rope ntk-aware, decoupled" in said
    bundle = load_bundle(str(tmp_path / "b"))
    assert (bundle.name, bundle.class_names) == ("mine", ("ant", "bee", "car"))
    assert bundle.defaults == SamplingDefaults(7, 2.5, (0.25, 0.75), "heun")
    assert (bundle.fitv2("these tests").config.num_heads, bundle.model_config.guided_channels) == (
        4,
        4,
    )


def test_a_pickle_needs_its_flag(tmp_path: Path, sources: dict[str, str]) -> None:
    error, _ = run(sources["pickle"], str(tmp_path / "bundle"), sources["autoencoder"])
    assert "model.safetensors is a torch pickle in a zip archive" in error
    assert "--allow-pickle" in error
    assert not (tmp_path / "bundle").exists()


def test_what_is_missing_or_means_nothing_is_told(tmp_path: Path, sources: dict[str, str]) -> None:
    bundle = str(tmp_path / "bundle")
    assert "need --autoencoder" in run(sources["safetensors"], bundle)[0]
    assert "known: keep, float32, bfloat16" in run(sources["safetensors"], bundle, "--dtype=x")[0]
    assert run(sources["safetensors"], bundle, sources["autoencoder"])[0] == ""
    for flag in (sources["autoencoder"], "--hr", "--num-heads=2", "--steps=3", "--name=x"):
        error, _ = run(bundle, str(tmp_path / "out"), flag)
        assert "means nothing when a bundle becomes a file" in error
    assert not (tmp_path / "out").exists()
    assert run(bundle, str(tmp_path / "out"), "--dtype=bfloat16")[0] == ""
