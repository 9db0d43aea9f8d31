from pathlib import Path
from typing import Any

import pytest
import torch

from fit_models.patches import patchify
from fit_training.preparation.latent_shards import (
    INDEX,
    LatentFolder,
    LatentImage,
    read_index,
    read_shard,
    shard_name,
)

DESCRIPTION = {"patch_size": 2, "split": "train", "photographs": ["a", "b", "c"]}


def latent_images(*grids: tuple[int, int], seed: int = 0) -> list[LatentImage]:
    """One image a grid, latents of four channels with their own means and deviations."""
    generator = torch.Generator().manual_seed(seed)
    images = []
    for photo, (rows, columns) in enumerate(grids):
        latent = torch.randn(4, 2 * rows, 2 * columns, generator=generator)
        latent = (
            latent * torch.tensor([1.0, 2, 3, 4])[:, None, None] + torch.arange(4)[:, None, None]
        )
        features = torch.randn(rows * columns, 6, generator=generator)
        (tokens,) = patchify(latent[None].half().float(), 2)
        images.append(LatentImage(tokens, features, (rows, columns), photo % 2, photo, photo == 1))
    return images


def begun(folder: Path, **changes: Any) -> LatentFolder:
    return LatentFolder(folder, {**DESCRIPTION, **changes})


def test_a_shard_comes_back_as_it_was_written(tmp_path: Path):
    images = latent_images((2, 3), (1, 4), (5, 2))
    begun(tmp_path).add(shard_name(0, 0), 0, images)
    (row,) = read_index(tmp_path)["shards"]
    shard = read_shard(tmp_path, row, verify=True)
    assert torch.equal(shard["tokens"], torch.cat([image.tokens for image in images]).half())
    features = [image.features for image in images if image.features is not None]
    assert torch.equal(shard["features"], torch.cat(features).half())
    assert shard["grid"].tolist() == [[2, 3], [1, 4], [5, 2]]
    assert shard["label"].tolist() == [0, 1, 0]
    assert shard["photo"].tolist() == [0, 1, 2]
    assert shard["flip"].tolist() == [0, 1, 0]
    assert {name: tensor.dtype for name, tensor in shard.items()} == {
        "tokens": torch.float16,
        "features": torch.float16,
        "grid": torch.int32,
        "label": torch.int32,
        "photo": torch.int32,
        "flip": torch.int8,
    }
    assert (row["num_images"], row["num_tokens"], row["variant"]) == (3, 20, 0)


def test_the_statistics_are_those_of_variant_0_over_all_its_shards(tmp_path: Path):
    first, second = latent_images((6, 3), (1, 4)), latent_images((2, 2), (3, 5), seed=1)
    folder = begun(tmp_path)
    folder.add(shard_name(0, 0), 0, first)
    folder.add(shard_name(0, 1), 0, second)
    folder.add(shard_name(1, 0), 1, latent_images((9, 9), seed=2))
    values = torch.cat([image.tokens for image in first + second]).double()
    by_channel = values.reshape(-1, 4, 4).permute(1, 0, 2).flatten(1)
    index = read_index(tmp_path)
    assert index["latent_mean"] == pytest.approx(by_channel.mean(dim=1).tolist())
    expected = by_channel.std(dim=1, correction=0).tolist()
    assert index["latent_std"] == pytest.approx(expected)


def test_a_folder_goes_on_where_it_stopped(tmp_path: Path):
    begun(tmp_path).add(shard_name(0, 1), 0, latent_images((2, 3)))
    again = begun(tmp_path)
    assert again.holds(shard_name(0, 1))
    assert not again.holds(shard_name(0, 0))
    again.add(shard_name(0, 0), 0, latent_images((2, 2)))
    files = [row["file"] for row in read_index(tmp_path)["shards"]]
    assert files == [shard_name(0, 0), shard_name(0, 1)]


def test_a_shard_whose_file_is_gone_is_not_held(tmp_path: Path):
    begun(tmp_path).add(shard_name(0, 0), 0, latent_images((2, 3)))
    (tmp_path / shard_name(0, 0)).unlink()
    assert not begun(tmp_path).holds(shard_name(0, 0))
    with pytest.raises(ValueError, match="in the index but not in the folder"):
        read_shard(tmp_path, read_index(tmp_path)["shards"][0])


def test_a_folder_begun_otherwise_is_refused(tmp_path: Path):
    begun(tmp_path).add(shard_name(0, 0), 0, latent_images((2, 3)))
    with pytest.raises(ValueError, match="was begun with other photographs"):
        begun(tmp_path, photographs=["a", "b"])


def test_what_is_half_written_is_in_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = begun(tmp_path)
    folder.add(shard_name(0, 0), 0, latent_images((2, 3)))

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("fit_training.preparation.latent_shards.os.replace", full)
    with pytest.raises(OSError, match="no space"):
        folder.add(shard_name(0, 1), 0, latent_images((2, 3)))
    assert [row["file"] for row in read_index(tmp_path)["shards"]] == [shard_name(0, 0)]
    assert not (tmp_path / shard_name(0, 1)).exists()


def test_a_changed_shard_is_noticed(tmp_path: Path):
    begun(tmp_path).add(shard_name(0, 0), 0, latent_images((2, 3)))
    (row,) = read_index(tmp_path)["shards"]
    path = tmp_path / row["file"]
    changed = bytearray(path.read_bytes())
    changed[-1] ^= 1
    path.write_bytes(changed)
    with pytest.raises(ValueError, match="has sha256"):
        read_shard(tmp_path, row, verify=True)


def test_a_folder_without_a_readable_index_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"has no index\.json"):
        read_index(tmp_path)
    (tmp_path / INDEX).write_text('{"format_version": 99}')
    with pytest.raises(ValueError, match="format_version 99, not 1"):
        read_index(tmp_path)
