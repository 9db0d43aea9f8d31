"""A bundle comes back as it was saved; a folder that is none says what is wrong with it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fit_models.bundle import (
    MODEL_INDEX,
    PROFILE,
    SamplingDefaults,
    bundle_folder,
    load_bundle,
    save_bundle,
)
from fit_models.diffusion.step_cache import GENERIC_PROFILE, PredictionProfile
from fit_models.packing import layout_of_grids
from support.toy_bundle import CLASS_NAMES, DEFAULTS, make_toy_bundle, make_toy_network


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_toy_bundle(tmp_path / "toy-bundle")


def edit_json(path: Path, **changes: Any) -> None:
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, **changes}))


def test_a_bundle_comes_back_as_it_was_saved(folder: Path):
    bundle = load_bundle(str(folder))
    made = make_toy_network()
    assert (bundle.name, bundle.class_names, bundle.defaults) == ("toy", CLASS_NAMES, DEFAULTS)
    assert bundle.model_config == made.config
    assert bundle.pixels_per_token == 16
    state = bundle.network.state_dict()
    assert all(torch.equal(state[key], value) for key, value in made.state_dict().items())
    assert not bundle.network.training
    assert not any(parameter.requires_grad for parameter in bundle.network.parameters())


def test_how_its_predictions_behave_is_read_if_it_was_measured(folder: Path):
    assert load_bundle(str(folder)).profile == GENERIC_PROFILE
    measured = PredictionProfile((0.0, 1.0), (1.0, 2.0), (3.0, 4.0), (0.5, 6.0))
    (folder / PROFILE).write_text(json.dumps(measured.to_dict()))
    assert load_bundle(str(folder)).profile == measured
    edit_json(folder / PROFILE, slope=[1.0])
    with pytest.raises(ValueError, match="slope has 1 values"):
        load_bundle(str(folder))


def test_a_loaded_bundle_makes_pictures_that_depend_on_the_label(folder: Path):
    bundle = load_bundle(str(folder))
    config = bundle.fitv2("these tests").config
    layout = layout_of_grids([(2, 3)], config.head_dim, config.rope)
    noise = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    pictures = []
    for label in range(len(CLASS_NAMES)):
        velocity = bundle.network(noise, layout, torch.zeros(1), torch.tensor([label]))
        latents = (noise + velocity).reshape(1, 2, 3, 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
        pictures.append(bundle.autoencoder.decode(latents.reshape(1, 4, 4, 6)))
    assert pictures[0].shape == (1, 3, 32, 48)
    assert not torch.equal(pictures[0], pictures[1])
    assert not torch.equal(pictures[1], pictures[2])


def test_a_dtype_reaches_network_and_autoencoder(folder: Path):
    bundle = load_bundle(str(folder), dtype=torch.bfloat16)
    assert {p.dtype for p in bundle.network.parameters()} == {torch.bfloat16}
    assert bundle.autoencoder.dtype == torch.bfloat16


def test_large_weights_are_shards(folder: Path, tmp_path: Path):
    made = make_toy_network()
    save_bundle(
        folder,
        "sharded",
        made.config,
        made.state_dict(),
        CLASS_NAMES,
        SamplingDefaults(),
        torch.float32,
        max_shard_bytes=40_000,
    )
    assert len(list((folder / "transformer").glob("*.safetensors"))) > 3
    bundle = load_bundle(str(folder))
    assert (bundle.name, bundle.defaults) == ("sharded", SamplingDefaults())
    state = bundle.network.state_dict()
    assert all(torch.equal(state[key], value) for key, value in made.state_dict().items())


def test_a_bundle_is_named_by_its_folder_where_it_does_not_say(folder: Path):
    index = json.loads((folder / MODEL_INDEX).read_text())
    del index["name"]
    (folder / MODEL_INDEX).write_text(json.dumps(index))
    assert load_bundle(str(folder)).name == "toy-bundle"


def test_what_is_no_bundle_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=f"is not a bundle \\({MODEL_INDEX} is missing\\)"):
        bundle_folder(str(tmp_path))
    with pytest.raises(ValueError, match=r"model .FiTv2-XL/2.: .* is not a bundle"):
        load_bundle("FiTv2-XL/2")


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "network config gone": (
        lambda f: (f / "transformer" / "config.json").unlink(),
        r"transformer/config\.json is missing",
    ),
    "network weights gone": (
        lambda f: [p.unlink() for p in (f / "transformer").glob("*.safetensors")],
        "weights: .*transformer holds neither",
    ),
    "autoencoder gone": (
        lambda f: (f / "vae" / "config.json").unlink(),
        r"autoencoder: .*vae holds no config\.json",
    ),
    "defaults gone": (
        lambda f: (f / "scheduler" / "scheduler_config.json").unlink(),
        r"scheduler_config\.json is missing",
    ),
    "index is no JSON": (
        lambda f: (f / MODEL_INDEX).write_text("{"),
        rf"{MODEL_INDEX} is not JSON",
    ),
    "index is a list": (
        lambda f: (f / MODEL_INDEX).write_text("[]"),
        rf"{MODEL_INDEX} holds a list, not an object",
    ),
    "index is no text": (
        lambda f: (f / MODEL_INDEX).write_bytes(b"\xff\xfe\x00"),
        rf"{MODEL_INDEX} is not JSON",
    ),
    "another family": (
        lambda f: edit_json(f / "transformer" / "config.json", _class_name="UNet"),
        "_class_name is 'UNet'; known: FiTv2",
    ),
    "an unknown key": (
        lambda f: edit_json(f / "transformer" / "config.json", window=3),
        r"unknown model config keys \['window'\]",
    ),
    "another depth": (
        lambda f: edit_json(f / "transformer" / "config.json", depth=3),
        r"weights: .* does not fit the network; missing \['blocks\.2",
    ),
    "a label without a name": (
        lambda f: edit_json(f / MODEL_INDEX, id2label={"0": "teapot", "2": "kite"}),
        r"id2label must name labels 0\.\.2, each once",
    ),
    "a label too many": (
        lambda f: edit_json(f / MODEL_INDEX, id2label={str(i): "x" for i in range(4)}),
        r"id2label must name labels 0\.\.2",
    ),
    "an unknown sampler": (
        lambda f: edit_json(f / "scheduler" / "scheduler_config.json", sampler="dpm"),
        "sampler 'dpm' is unknown; known: euler",
    ),
    "an unknown default": (
        lambda f: edit_json(f / "scheduler" / "scheduler_config.json", steps=3),
        r"scheduler_config\.json: .*steps",
    ),
    "no steps": (
        lambda f: edit_json(f / "scheduler" / "scheduler_config.json", num_inference_steps=0),
        "num_inference_steps is 0; it must be at least 1",
    ),
    "steps of another type": (
        lambda f: edit_json(f / "scheduler" / "scheduler_config.json", num_inference_steps="4"),
        r"scheduler_config\.json: ",
    ),
    "a negative scale": (
        lambda f: edit_json(f / "scheduler" / "scheduler_config.json", guidance_scale=-1),
        "guidance_scale is -1; it must be finite",
    ),
    "an empty interval": (
        lambda f: edit_json(f / "scheduler" / "scheduler_config.json", guidance_interval=[1, 0]),
        r"guidance_interval is \(1, 0\)",
    ),
    "another latent space": (
        lambda f: edit_json(f / "transformer" / "config.json", in_channels=16, patch_size=1),
        "vae has 4 latent channels, .* says 16",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_bundle_says_what_is_wrong(folder: Path, damage: str):
    break_it, message = DAMAGE[damage]
    break_it(folder)
    with pytest.raises(ValueError, match=message):
        load_bundle(str(folder))


def test_two_toy_bundles_of_one_seed_are_the_same(folder: Path, tmp_path: Path):
    again = make_toy_bundle(tmp_path / "again")
    names = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(again) for p in again.rglob("*") if p.is_file())
    for name in names:
        assert (folder / name).read_bytes() == (again / name).read_bytes(), name
