"""Weights come back as they were written; whatever does not fit exactly is refused by name."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fit_models.checkpoint import INDEX, WEIGHTS, load_weights, save_weights, weight_files
from fit_models.config import named_config
from fit_models.networks.fitv2 import FiTv2
from support.toy_bundle import make_toy_network

KEY = "blocks.0.attn.proj.bias"
SHARD_BYTES = 40_000  # several shards of the toy network's 230 kB


@pytest.fixture
def state() -> dict[str, Tensor]:
    return make_toy_network().state_dict()


def empty_network() -> FiTv2:
    with torch.device("meta"):
        return FiTv2(named_config("FiTv2-toy/2", 3))


def loaded(source: Path, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    network = empty_network()
    load_weights(network, source, "cpu", dtype)
    return network.state_dict()


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert [key for key in wanted if not torch.equal(found[key], wanted[key])] == []


def test_one_file_comes_back_as_it_was_written(tmp_path: Path, state: dict[str, Tensor]):
    assert save_weights(state, tmp_path, torch.float32) == [tmp_path / WEIGHTS]
    assert_equal(loaded(tmp_path), state)
    assert_equal(loaded(tmp_path / WEIGHTS), state)


def test_shards_come_back_as_they_were_written(tmp_path: Path, state: dict[str, Tensor]):
    paths = save_weights(state, tmp_path, torch.float32, SHARD_BYTES)
    assert len(paths) > 3
    assert weight_files(tmp_path) == sorted(paths)
    held = [load_file(path) for path in paths]
    assert sorted(key for shard in held for key in shard) == sorted(state)
    # A tensor larger than a shard may be is a shard of its own.
    sizes = [(len(shard), sum(t.nbytes for t in shard.values())) for shard in held]
    assert all(count == 1 or size <= SHARD_BYTES for count, size in sizes)
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in state.values())
    assert_equal(loaded(tmp_path), state)


def test_what_was_written_last_is_what_is_read(tmp_path: Path, state: dict[str, Tensor]):
    other = {key: value + 1 for key, value in state.items()}
    save_weights(state, tmp_path, torch.float32)
    save_weights(other, tmp_path, torch.float32, SHARD_BYTES)
    assert_equal(loaded(tmp_path), other)
    save_weights(state, tmp_path, torch.float32)
    assert_equal(loaded(tmp_path), state)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16])
def test_the_dtype_in_memory_is_the_one_asked_for(
    tmp_path: Path, state: dict[str, Tensor], stored: torch.dtype, wanted: torch.dtype
):
    save_weights(state, tmp_path, stored)
    exact = {key: value.to(stored).to(wanted) for key, value in state.items()}
    found = loaded(tmp_path, wanted)
    assert {value.dtype for value in found.values()} == {wanted}
    assert_equal(found, exact)


def test_a_training_wrapper_s_prefix_is_taken_off(tmp_path: Path, state: dict[str, Tensor]):
    path = tmp_path / "model.safetensors"
    save_file({f"module.{key}": value for key, value in state.items()}, path)
    assert_equal(loaded(path), state)


@pytest.mark.parametrize("max_shard_bytes", [2**30, SHARD_BYTES])
@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_names_and_shapes_must_fit_exactly(
    tmp_path: Path, state: dict[str, Tensor], change: str, max_shard_bytes: int
):
    if change == "missing":
        del state[KEY]
        message = rf"missing \['{KEY}'\], unexpected none"
    elif change == "unexpected":
        state["blocks.9.attn.proj.bias"] = torch.zeros(48)
        message = r"missing none, unexpected \['blocks\.9\.attn\.proj\.bias'\]"
    else:
        state[KEY] = state[KEY][:-1].clone()
        message = rf"{KEY} in .* has shape \[47\], the network needs \[48\]"
    save_weights(state, tmp_path, torch.float32, max_shard_bytes)
    with pytest.raises(ValueError, match=message):
        loaded(tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "not safetensors", "empty"])
def test_a_broken_file_is_refused(tmp_path: Path, state: dict[str, Tensor], damage: str):
    (path,) = save_weights(state, tmp_path, torch.float32)
    contents = {
        "truncated": path.read_bytes()[:-100],
        "not safetensors": b"PK\x03\x04 a pickle in a zip file, as torch.save writes it",
        "empty": b"",
    }
    path.write_bytes(contents[damage])
    with pytest.raises(ValueError, match=f"{WEIGHTS} is not a readable safetensors file"):
        loaded(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path: Path):
    for source in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ValueError, match=f"holds neither {WEIGHTS} nor {INDEX}"):
            weight_files(source)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": 3}'])
def test_an_index_without_a_map_is_refused(tmp_path: Path, text: str):
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(ValueError, match="has no usable weight_map"):
        weight_files(tmp_path)


def test_an_absent_shard_is_refused(tmp_path: Path, state: dict[str, Tensor]):
    paths = save_weights(state, tmp_path, torch.float32, SHARD_BYTES)
    paths[1].unlink()
    with pytest.raises(ValueError, match=f"names {paths[1].name}, which is not in"):
        loaded(tmp_path)


@pytest.mark.parametrize("escape", ["../secret.safetensors", "sub/../../secret.safetensors"])
@pytest.mark.parametrize("absolute", [False, True])
def test_an_index_may_not_point_outside_its_folder(
    tmp_path: Path, state: dict[str, Tensor], escape: str, absolute: bool
):
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    save_file(state, tmp_path / "secret.safetensors")
    name = str(tmp_path / "secret.safetensors") if absolute else escape
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(state, name)}))
    with pytest.raises(ValueError, match=r"secret\.safetensors', outside its folder"):
        loaded(folder)


def test_a_cache_of_links_can_be_read(tmp_path: Path, state: dict[str, Tensor]):
    """Downloaded models often lie as links into a store beside them."""
    store, folder = tmp_path / "store", tmp_path / "snapshot"
    folder.mkdir()
    for path in [*save_weights(state, store, torch.float32, SHARD_BYTES), store / INDEX]:
        (folder / path.name).symlink_to(path)
    assert_equal(loaded(folder), state)


def test_no_memory_is_taken_before_the_weights_themselves():
    network = empty_network()
    assert {parameter.device.type for parameter in network.parameters()} == {"meta"}
    assert list(network.buffers()) == []
