"""Released file to bundle to file: the same bits; and whatever goes wrong changes nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fit_models.autoencoder import Autoencoder
from fit_models.bundle import SamplingDefaults, load_bundle
from fit_models.config import HR_ROPE, NAMED_CONFIGS
from fit_models.released import conversion
from fit_models.released.conversion import BundleOptions, convert_released, flatten_bundle
from fit_models.released.report import sha256_of
from support.golden import load_family
from support.official import grids_of, layout_for, pack, pad
from support.released_files import CONTAINERS, same_bits, write_pickle, write_released, write_shards
from support.small_autoencoders import write_small_autoencoder
from support.toy_bundle import make_toy_network

GOLDEN = load_family("fitv2")
CASE = GOLDEN.case("forward_3x5")
HEADS = CASE.config["num_heads"]


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_autoencoder(tmp_path_factory.mktemp("autoencoder"))


@pytest.fixture(scope="module")
def official() -> dict[str, Tensor]:
    assert CASE.model is not None
    return GOLDEN.weights(CASE.model)


@pytest.fixture
def toy() -> dict[str, Tensor]:
    return dict(make_toy_network().state_dict())


def all_files(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.mark.parametrize("container", [*CONTAINERS, "shards", "wrapped"])
def test_there_and_back_is_the_same_bit_for_bit(
    tmp_path: Path, autoencoder: Path, official: dict[str, Tensor], container: str
):
    source = tmp_path / "source"
    if container == "shards":
        write_shards(source, official, 3)
    elif container == "wrapped":
        prefixed = {f"module.{key}": value for key, value in official.items()}
        write_pickle(source, {"ema": prefixed, "epoch": 3})
    else:
        write_released(source, official, container)
    options = BundleOptions(num_heads=HEADS)
    convert_released(source, tmp_path / "bundle", autoencoder, options, allow_pickle=True)
    flatten_bundle(tmp_path / "bundle", tmp_path / "out.safetensors")
    assert same_bits(load_file(tmp_path / "out.safetensors"), official)


def test_the_bundle_computes_what_the_authors_code_did(
    tmp_path: Path, autoencoder: Path, official: dict[str, Tensor]
):
    source = write_released(tmp_path / "model_ema.bin", official)
    convert_released(source, tmp_path / "bundle", autoencoder, BundleOptions(num_heads=HEADS))
    network = load_bundle(str(tmp_path / "bundle")).fitv2("these tests")
    grids, x = grids_of(CASE), CASE.inputs["x"]
    t, y = CASE.inputs["t"], CASE.inputs["y"].long()
    out = network(pack(x, grids), layout_for(network, grids), t, y)
    CASE.check({"out": pad(out, grids, x.shape[1])})


@pytest.mark.parametrize("max_shard_bytes", [10_000, 2**30])
def test_each_tensor_keeps_its_own_dtype_and_every_bit(
    tmp_path: Path,
    autoencoder: Path,
    toy: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
    max_shard_bytes: int,
):
    monkeypatch.setattr(conversion, "DEFAULT_SHARD_BYTES", max_shard_bytes)
    for i, dtype in enumerate((torch.float16, torch.bfloat16, torch.float32)):
        toy[f"blocks.{i % 2}.attn.proj.bias"] = torch.tensor([float("nan"), -0.0, 1e-7] * 16).to(
            dtype
        )
    source = write_released(tmp_path / "x", toy)
    report = convert_released(source, tmp_path / "bundle", autoencoder, BundleOptions())
    flatten_bundle(tmp_path / "bundle", tmp_path / "out")
    assert same_bits(load_file(tmp_path / "out"), toy)
    assert sum(report["dtypes"].values()) == len(toy)
    assert report["dtypes"].keys() == {"float32", "bfloat16"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_another_dtype_is_rounded_once(
    tmp_path: Path, autoencoder: Path, toy: dict[str, Tensor], dtype: torch.dtype
):
    source = write_released(tmp_path / "x", toy)
    options = BundleOptions(dtype=dtype)
    convert_released(source, tmp_path / "bundle", autoencoder, options)
    wanted = {key: value.to(dtype) for key, value in toy.items()}
    flatten_bundle(tmp_path / "bundle", tmp_path / "out")
    assert same_bits(load_file(tmp_path / "out"), wanted)
    flatten_bundle(tmp_path / "bundle", tmp_path / "wide", torch.float32)
    assert same_bits(load_file(tmp_path / "wide"), {k: v.float() for k, v in wanted.items()})


def test_the_bundle_is_what_it_was_told_to_be(
    tmp_path: Path, autoencoder: Path, toy: dict[str, Tensor]
):
    source, defaults = write_released(tmp_path / "x", toy), SamplingDefaults(9, 4.0, (0.1, 0.9))
    names = ("ant", "bee", "car")
    options = BundleOptions(
        "mine",
        names,
        hr=True,
        guided_channels=4,
        num_inference_steps=9,
        guidance_scale=4.0,
        guidance_interval=(0.1, 0.9),
    )
    convert_released(source, tmp_path / "bundle", autoencoder, options)
    bundle = load_bundle(str(tmp_path / "bundle"))
    assert (bundle.name, bundle.class_names, bundle.defaults) == ("mine", names, defaults)
    toy_config = NAMED_CONFIGS["FiTv2-toy/2"]
    assert bundle.model_config == replace(
        toy_config, num_classes=3, guided_channels=4, rope=HR_ROPE
    )


def test_without_being_told_it_has_names_and_the_autoencoder_its_own_scale(
    tmp_path: Path, toy: dict[str, Tensor], autoencoder: Path
):
    scaled = tmp_path / "vae"
    write_small_autoencoder(scaled)
    config = json.loads((scaled / "config.json").read_text())
    (scaled / "config.json").write_text(json.dumps({**config, "scaling_factor": 0.18215}))
    source = write_released(tmp_path / "x", toy)
    convert_released(source, tmp_path / "somewhere" / "bundle", scaled, BundleOptions())
    bundle = load_bundle(str(tmp_path / "somewhere" / "bundle"))
    assert bundle.name == "bundle"
    assert bundle.class_names == ("class 0", "class 1", "class 2")
    assert bundle.autoencoder.scaling_factor == 0.18215
    assert bundle.autoencoder.shift_factor == Autoencoder.from_folder(scaled).shift_factor


def test_the_report_tells_what_was_found_and_lies_in_the_bundle(
    tmp_path: Path, autoencoder: Path, toy: dict[str, Tensor]
):
    held = {"model_ema": {f"module.{key}": value for key, value in toy.items()}}
    source = write_pickle(tmp_path / "x.bin", held)
    report = convert_released(
        source, tmp_path / "bundle", autoencoder, BundleOptions(), allow_pickle=True
    )
    assert report == json.loads((tmp_path / "bundle" / "conversion.json").read_text())
    assert report["files"] == {"x.bin": sha256_of(source)}
    assert report["container"] == "torch pickle in a zip archive"
    assert report["stripped"] == ["model_ema", "module."]
    assert report["tensors"] == len(toy) == 13 + 14 * 2
    assert report["elements"] == sum(value.numel() for value in toy.values())
    assert report["dtypes"] == {"float32": len(toy)}
    assert report["largest"] == {"global_adaLN_modulation.1.weight": [288, 48]}
    assert (report["size"], report["config"]["num_heads"]) == ("FiTv2-toy/2", 2)
    assert str(tmp_path) not in json.dumps(report)


def _drop(toy: dict[str, Tensor]) -> None:
    del toy["blocks.1.mlp.fc2.bias"]


def _add(toy: dict[str, Tensor]) -> None:
    toy["pos_embed"] = torch.zeros(3)


def _cut(toy: dict[str, Tensor]) -> None:
    toy["blocks.1.attn.qkv.weight"] = toy["blocks.1.attn.qkv.weight"][:-1].clone()


def _prefix_one(toy: dict[str, Tensor]) -> None:
    toy["module.final_layer.linear.bias"] = toy.pop("final_layer.linear.bias")


def _prefix_wrong(toy: dict[str, Tensor]) -> None:
    for key in list(toy):
        toy[f"net.{key}"] = toy.pop(key)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop, r"missing \['blocks.1.mlp.fc2.bias'\], unexpected none"),
        (_add, "not FiTv2, which has no 'pos_embed'"),
        (_cut, r"blocks.1.attn.qkv.weight in .* has shape \[143, 48\], .* needs \[144, 48\]"),
        (_prefix_one, "has no 'module.final_layer.linear.bias'"),
        (_prefix_wrong, "has no 'net.blocks.0.adaLN_modulation.1.bias', .* and 36 more"),
    ],
)
def test_what_does_not_fit_exactly_leaves_nothing_behind(
    tmp_path: Path,
    autoencoder: Path,
    toy: dict[str, Tensor],
    change: Callable[[dict[str, Tensor]], None],
    message: str,
):
    change(toy)
    source = write_released(tmp_path / "x", toy)
    with pytest.raises(ValueError, match=message):
        convert_released(source, tmp_path / "bundle", autoencoder, BundleOptions())
    assert os.listdir(tmp_path) == ["x"]


def test_a_wrong_number_of_names_and_no_autoencoder_are_refused_before_writing(
    tmp_path: Path, autoencoder: Path, toy: dict[str, Tensor]
):
    source = write_released(tmp_path / "x", toy)
    options = BundleOptions(class_names=("a", "b"))
    with pytest.raises(ValueError, match="classes: 2 names for 3 labels"):
        convert_released(source, tmp_path / "bundle", autoencoder, options)
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        convert_released(source, tmp_path / "bundle", tmp_path / "absent", BundleOptions())
    assert os.listdir(tmp_path) == ["x"]


def test_what_is_there_already_stays(tmp_path: Path, autoencoder: Path, toy: dict[str, Tensor]):
    source, bundle = write_released(tmp_path / "x", toy), tmp_path / "bundle"
    bundle.mkdir()
    convert_released(source, bundle, autoencoder, BundleOptions())  # an empty folder is no loss
    flatten_bundle(bundle, tmp_path / "out")
    before = all_files(tmp_path)
    for destination in (bundle, tmp_path / "out"):
        with pytest.raises(ValueError, match=r"destination: .* already exists"):
            convert_released(source, destination, autoencoder, BundleOptions())
    with pytest.raises(ValueError, match="already exists"):
        flatten_bundle(bundle, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="is a folder; a bundle becomes one file"):
        flatten_bundle(bundle, tmp_path / "empty")
    assert all_files(tmp_path) == before


def test_a_failure_while_writing_leaves_nothing_behind(
    tmp_path: Path, autoencoder: Path, toy: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
):
    def write_other_weights(tensors: dict[str, Tensor], path: Path, dtype: object) -> int:
        save_file({key: value + 1 for key, value in tensors.items()}, path)
        return 0

    source = write_released(tmp_path / "x", toy)
    convert_released(source, tmp_path / "good", autoencoder, BundleOptions())
    before = all_files(tmp_path)
    monkeypatch.setattr(conversion, "save_tensors", write_other_weights)
    monkeypatch.setattr("fit_models.checkpoint.save_tensors", write_other_weights)
    with pytest.raises(ValueError, match="41 tensors read back otherwise"):
        convert_released(source, tmp_path / "bundle", autoencoder, BundleOptions())
    with pytest.raises(ValueError, match="41 tensors read back otherwise"):
        flatten_bundle(tmp_path / "good", tmp_path / "out")
    assert all_files(tmp_path) == before
    assert sorted(os.listdir(tmp_path)) == ["good", "x"]


def test_a_bundle_that_contradicts_its_config_is_not_flattened(
    tmp_path: Path, autoencoder: Path, toy: dict[str, Tensor]
):
    source, bundle = write_released(tmp_path / "x", toy), tmp_path / "bundle"
    convert_released(source, bundle, autoencoder, BundleOptions())
    config = json.loads((bundle / "transformer" / "config.json").read_text())
    (bundle / "transformer" / "config.json").write_text(json.dumps({**config, "depth": 3}))
    with pytest.raises(ValueError, match=r"missing \['blocks\.2\."):
        flatten_bundle(bundle, tmp_path / "out")
    assert not (tmp_path / "out").exists()
