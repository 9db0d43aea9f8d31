"""However weights were released, the same tensors come out, or the reason why not."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fit_models.released.container import Container
from fit_models.released.state_dict import WRAPPERS, ReleasedWeights, read_released
from support.released_files import (
    CONTAINERS,
    same_bits,
    write_pickle,
    write_released,
    write_shards,
)


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = {f"layer.{i}.weight": torch.randn(4, 3 + i, generator=generator) for i in range(6)}
    made["odd"] = torch.tensor([float("nan"), -0.0, float("inf"), 1e-45])
    made["half"] = torch.randn(5, generator=generator).bfloat16()
    return made


def read(source: Path, **how: Any) -> ReleasedWeights:
    return read_released(source, allow_pickle=True, **how)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("container", CONTAINERS)
def test_every_container_gives_the_same_bits(
    tmp_path: Path, tensors: dict[str, Tensor], container: str, suffix: str
):
    path = write_released(tmp_path / f"model_ema{suffix}", tensors, container)
    for source in (path, tmp_path):  # a folder stands for the one file in it
        found = read(source)
        assert same_bits(found.tensors, tensors)
        assert (found.files, found.stripped, found.with_attributes) == ((path,), (), ())


def test_shards_are_put_together(tmp_path: Path, tensors: dict[str, Tensor]):
    found = read(write_shards(tmp_path, tensors, 3))
    assert same_bits(found.tensors, tensors)
    assert len(found.files) == 3


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_wrapper_and_a_prefix_come_off_and_are_told(
    tmp_path: Path, tensors: dict[str, Tensor], wrapper: str, is_zip: bool, prefix: str
):
    flat = {f"{prefix}{key}": value for key, value in tensors.items()}
    held = {wrapper: flat, "step": 7, "lr": 1e-4}
    found = read(write_pickle(tmp_path / "x.pt", held, is_zip))
    assert same_bits(found.tensors, tensors)
    assert found.stripped == ((wrapper, "module.") if prefix else (wrapper,))


def test_a_prefix_on_some_names_only_stays(tmp_path: Path, tensors: dict[str, Tensor]):
    mixed = {"module.odd" if key == "odd" else key: value for key, value in tensors.items()}
    found = read(write_released(tmp_path / "x", mixed))
    assert found.tensors.keys() == mixed.keys()
    assert found.stripped == ()


def test_of_several_wrappers_one_must_be_chosen(tmp_path: Path, tensors: dict[str, Tensor]):
    other = {key: value + 1 for key, value in tensors.items()}
    path = write_pickle(tmp_path / "x.pt", {"model": other, "ema": tensors, "raw": other})
    with pytest.raises(ValueError, match=r"several sets of weights: model, ema; .*--wrapper"):
        read(path)
    assert same_bits(read(path, wrapper="ema").tensors, tensors)
    assert same_bits(read(path, wrapper="raw").tensors, other)
    with pytest.raises(ValueError, match="no dict under 'absent'; its keys: model, ema, raw"):
        read(path, wrapper="absent")


@pytest.mark.parametrize("container", ["zip", "legacy"])
def test_a_pickle_is_read_only_when_allowed(
    tmp_path: Path, tensors: dict[str, Tensor], container: str
):
    path = write_released(tmp_path / "model.safetensors", tensors, container)
    with pytest.raises(ValueError, match=r"is a torch pickle .* --allow-pickle"):
        read_released(path)


class Malice:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_pickle_cannot_run_anything(tmp_path: Path, tensors: dict[str, Tensor], is_zip: bool):
    held = {**tensors, "x": Malice(tmp_path / "made")}
    path = write_pickle(tmp_path / "x.bin", held, is_zip)
    with pytest.raises(ValueError, match=r"asks for \w+\.mkdir, .* could run code") as caught:
        read(path)
    assert "weights_only" not in str(caught.value)  # nobody is told to switch the guard off
    assert not (tmp_path / "made").exists()


class Subclass(Tensor):
    pass


def test_attributes_of_tensors_are_dropped_and_told(tmp_path: Path):
    """The released 3B file has such tensors."""
    tagged = torch.ones(2, 3)
    tagged.note = "sharded"  # type: ignore[attr-defined]
    path = write_pickle(tmp_path / "x.bin", {"a": tagged, "b": nn.Parameter(torch.zeros(2))})
    assert b"_rebuild_from_type_v2" in path.read_bytes()
    found = read(path)
    assert found.with_attributes == ("a",)
    assert same_bits(found.tensors, {"a": torch.ones(2, 3), "b": torch.zeros(2)})
    assert {type(value) for value in found.tensors.values()} == {Tensor}
    assert not vars(found.tensors["a"])


def test_subclasses_of_tensors_are_refused_by_name(tmp_path: Path):
    path = write_pickle(tmp_path / "x.bin", {"a": torch.ones(2).as_subclass(Subclass)})
    with pytest.raises(ValueError, match=r"asks for \S*Subclass"):
        read(path)


def test_views_and_shared_memory_become_tensors_of_their_own(tmp_path: Path):
    base = torch.arange(12.0).reshape(3, 4)
    held = {"whole": base, "again": base, "turned": base.t(), "wide": base[:, :1].expand(3, 4)}
    found = read(write_pickle(tmp_path / "x.bin", held)).tensors
    assert same_bits(found, held)
    save_file({key: value.contiguous() for key, value in found.items()}, tmp_path / "y")


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ([torch.ones(2)], "holds a list, not a dict of tensors"),
        (torch.ones(2), "holds a Tensor, not a dict"),
        ({}, "holds a dict, not a dict of tensors"),
        ({"a": torch.ones(2), "step": 3}, "'step' in .* is a int, not a named tensor"),
        ({"a": {"b": torch.ones(2)}}, "'a' in .* is a dict, not a named tensor"),
        ({3: torch.ones(2)}, "3 in .* not a named tensor"),
        ({"a": torch.arange(3)}, r"a in .* is torch\.int64, neither floating point"),
        ({"a": torch.eye(2).to_sparse()}, "a in .* is not a dense tensor"),
        ({"a": torch.empty(2, device="meta")}, "a in .* is not a dense tensor"),
    ],
)
def test_what_is_no_dict_of_dense_tensors_is_refused(tmp_path: Path, held: Any, message: str):
    with pytest.raises(ValueError, match=message):
        read(write_pickle(tmp_path / "x.bin", held))


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_truncated_file_is_refused_wherever_it_ends(
    tmp_path: Path, tensors: dict[str, Tensor], container: str
):
    contents = write_released(tmp_path / "whole", tensors, container).read_bytes()
    for length in [*range(0, len(contents) - 1, len(contents) // 40), len(contents) - 1]:
        (tmp_path / "cut").write_bytes(contents[:length])
        with pytest.raises(ValueError, match=r"^weights: .*cut"):
            read(tmp_path / "cut")


def test_a_folder_must_leave_no_choice(tmp_path: Path, tensors: dict[str, Tensor]):
    with pytest.raises(ValueError, match="no such file or folder"):
        read(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"must hold one file of weights .* found none"):
        read(tmp_path)
    for name in ("a.bin", "b.safetensors"):
        write_released(tmp_path / name, tensors)
    with pytest.raises(ValueError, match=r"found a\.bin, b\.safetensors; name the file itself"):
        read(tmp_path)


def test_shards_hold_a_name_once_and_are_no_pickles(tmp_path: Path, tensors: dict[str, Tensor]):
    write_shards(tmp_path / "twice", tensors, 2)
    save_file(tensors, tmp_path / "twice" / "part-1.safetensors")
    with pytest.raises(ValueError, match=r"is in .* and in a shard before it"):
        read(tmp_path / "twice")
    write_shards(tmp_path / "pickled", tensors, 2)
    write_pickle(tmp_path / "pickled" / "part-1.safetensors", tensors)
    with pytest.raises(ValueError, match="must all be safetensors files"):
        read(tmp_path / "pickled")
    index = tmp_path / "twice" / "model_ema.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {}}))
    with pytest.raises(ValueError, match="names no shard"):
        read(tmp_path / "twice")


@pytest.mark.parametrize("container", ["safetensors", "zip"])
def test_tensors_stay_on_disk(tmp_path: Path, container: str):
    """Their memory is the file's own pages: what is written into the file shows in them."""
    path = write_released(tmp_path / "x", {"a": torch.full((64,), 3.0)}, container)
    found = read(path)
    assert found.container in (Container.SAFETENSORS, Container.TORCH_ZIP)
    old, new = torch.full((64,), 3.0).numpy().tobytes(), torch.full((64,), 5.0).numpy().tobytes()
    with path.open("r+b") as file:
        file.seek(path.read_bytes().index(old))
        file.write(new)
    assert found.tensors["a"].tolist() == [5.0] * 64
