"""A file is what its bytes say, not what its name says."""

import struct
from pathlib import Path

import pytest
import torch

from fit_models.released.container import Container, container_of
from support.released_files import write_released

FOUND = {
    "safetensors": Container.SAFETENSORS,
    "zip": Container.TORCH_ZIP,
    "legacy": Container.TORCH_LEGACY,
}


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ""])
@pytest.mark.parametrize(("container", "expected"), FOUND.items())
def test_the_name_says_nothing(tmp_path: Path, container: str, expected: Container, suffix: str):
    path = write_released(tmp_path / f"weights{suffix}", {"a": torch.ones(3)}, container)
    assert container_of(path) is expected
    assert expected.is_pickle == (container != "safetensors")


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"\n<html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "pointer of git-lfs"),
        (b"\x89PNG\r\n\x1a\n", "neither a safetensors file nor a torch pickle"),
        (b'{"weights": 1, "more": 2}', "neither a safetensors file nor a torch pickle"),
        (b"\x80\xff pickles have no such protocol", "neither a safetensors file nor"),
        (struct.pack("<Q", 4000) + b'{"a": ', "cut off in its header: 14 of at least 4008 bytes"),
        (struct.pack("<Q", 2**60) + b'{"a": ', "neither a safetensors file nor a torch pickle"),
    ],
)
def test_anything_else_is_named_for_what_it_is(tmp_path: Path, start: bytes, message: str):
    (tmp_path / "model.safetensors").write_bytes(start)
    with pytest.raises(ValueError, match=message):
        container_of(tmp_path / "model.safetensors")
