"""An adapter comes back as it was saved; a folder that holds none says what is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from fit_models.adapter import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    AdapterConfig,
    fingerprint_of,
    load_adapter,
)
from support.toy_adapter import make_adapted_network, make_toy_adapter, save_toy_adapter
from support.toy_bundle import make_toy_network


def test_an_adapter_comes_back_as_it_was_saved(tmp_path: Path):
    made = make_toy_adapter(("dachshund", "lynx"), name="dogs")
    loaded = load_adapter(save_toy_adapter(tmp_path / "dogs", ("dachshund", "lynx")))
    assert (loaded.name, loaded.config) == (made.name, made.config)
    assert loaded.weights.keys() == made.weights.keys()
    assert all(torch.equal(loaded.weights[name], made.weights[name]) for name in made.weights)


def test_names_in_the_file_are_those_of_peft(tmp_path: Path):
    folder = save_toy_adapter(tmp_path / "dogs", ("lynx",))
    with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    assert shapes["base_model.model.blocks.0.attn.qkv.lora_A.weight"] == [4, 48]
    assert shapes["base_model.model.blocks.0.attn.qkv.lora_B.weight"] == [144, 4]
    assert shapes["base_model.model.y_embedder.new_rows.weight"] == [1, 48]
    assert len(shapes) == 2 * 5 * 2 + 1
    config = json.loads((folder / ADAPTER_CONFIG).read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4, 6.0)


def test_a_base_has_one_fingerprint_adapted_or_not_and_in_either_precision():
    fingerprint = fingerprint_of(make_toy_network().state_dict())
    assert fingerprint == fingerprint_of(make_toy_network().bfloat16().state_dict())
    assert fingerprint == fingerprint_of(make_adapted_network(2).state_dict())


def test_any_other_weight_or_class_count_is_another_base():
    changed = make_toy_network()
    changed.final_layer.linear.bias[3] += 0.1
    others = (changed, make_toy_network(seed=1), make_toy_network(num_classes=4))
    prints = {fingerprint_of(network.state_dict()) for network in (make_toy_network(), *others)}
    assert len(prints) == 4


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"r": 0}, "adapter r is 0; it must be at least 1"),
        ({"r": None}, r"adapter_config\.json does not fit"),
        ({"lora_alpha": "much"}, "does not fit: could not convert.*'much'"),
        ({"class_names": "lynx"}, "class_names is 'lynx'; it must be a list"),
        ({"target_modules": ["attn.qkv", "t_embedder"]}, "'t_embedder'.*known: attn.qkv"),
        ({"class_names": ["lynx", "lynx"]}, "each must be once"),
    ],
)
def test_a_config_that_cannot_be_is_refused(tmp_path: Path, changes: dict[str, Any], said: str):
    folder = save_toy_adapter(tmp_path / "dogs")
    config = json.loads((folder / ADAPTER_CONFIG).read_text())
    (folder / ADAPTER_CONFIG).write_text(json.dumps({**config, **changes}))
    with pytest.raises(ValueError, match=said):
        load_adapter(folder)


def test_a_folder_that_lacks_something_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"adapter_config\.json is missing"):
        load_adapter(tmp_path / "nowhere")
    folder = save_toy_adapter(tmp_path / "dogs")
    (folder / ADAPTER_WEIGHTS).write_bytes(b"not one")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load_adapter(folder)
    (folder / ADAPTER_WEIGHTS).unlink()
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors is missing"):
        load_adapter(folder)
    (folder / ADAPTER_CONFIG).write_text("{}")
    with pytest.raises(ValueError, match="lacks 'r'"):
        load_adapter(folder)
    (folder / ADAPTER_CONFIG).write_text("[")
    with pytest.raises(ValueError, match="is not JSON"):
        load_adapter(folder)


def test_scale_is_alpha_over_rank():
    assert AdapterConfig(4, 6.0, "toy", "").scale == 1.5
