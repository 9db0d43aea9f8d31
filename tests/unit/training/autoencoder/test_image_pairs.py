"""Laws of the pairs: tiles of allowed sizes, made again the same, agreeing with the teacher."""

import dataclasses
from pathlib import Path

import pytest
import torch

from fit_models.autoencoder import Autoencoder
from fit_training.autoencoder.image_pairs import (
    INDEX_NAME,
    PairConfig,
    cut_tiles,
    load_image_pairs,
    write_image_pairs,
)
from support.photograph_archives import invented_photograph, write_archive
from support.small_autoencoders import write_small_autoencoder

SIZES = [("owl", 60, 40), ("owl", 33, 70), ("fox", 20, 18), ("fox", 64, 64), ("elk", 50, 20)]


@pytest.fixture
def config(tmp_path: Path) -> PairConfig:
    return PairConfig(
        archive=write_archive(tmp_path / "photographs.zip", SIZES),
        teacher=write_small_autoencoder(tmp_path / "teacher"),
        folder=tmp_path / "pairs",
        sides=(16, 24, 32),
        shard_tiles=3,
    )


@pytest.mark.parametrize(("width", "height"), [(300, 20), (5, 9), (16, 16), (64, 200)])
def test_tiles_have_allowed_sides_and_cover_most_of_the_photograph(config, width, height):
    for seed in range(20):
        tiles = cut_tiles(invented_photograph(width, height, 0), config, str(seed))
        assert tiles
        assert {side for tile in tiles for side in tile.size} <= set(config.sides)
        covered = sum(tile.width * tile.height for tile in tiles)
        assert covered >= 0.75 * width * height * config.scales[0] ** 2


def test_a_seed_fixes_the_tiles_and_another_changes_them(config):
    photograph = invented_photograph(60, 40, 0)

    def cut(seed: str) -> list[bytes]:
        return [tile.tobytes() for tile in cut_tiles(photograph, config, seed)]

    assert cut("a") == cut("a")
    assert len({tuple(cut(str(seed))) for seed in range(8)}) == 8


def test_latents_and_decoded_images_are_the_teachers_of_each_tile(config):
    write_image_pairs(config)
    teacher = Autoencoder.from_folder(config.teacher).to(dtype=torch.bfloat16)
    pairs = load_image_pairs(config.folder)
    assert len(pairs) > 1
    for group in pairs:
        assert group.images_B3HW is not None
        assert torch.equal(group.latents_B4hw, teacher.encode(group.images_B3HW).half())
        assert torch.equal(group.decoded_B3HW, teacher.decode(group.latents_B4hw))


def test_every_tile_is_kept_once(config):
    write_image_pairs(config)
    written = sum(len(group.decoded_B3HW) for group in load_image_pairs(config.folder))
    cut = sum(
        len(cut_tiles(invented_photograph(width, height, number), config, f"0/{number}"))
        for number, (_, width, height) in enumerate(SIZES)
    )
    assert written == cut


def test_an_interrupted_folder_is_completed_to_the_same_bytes(config, tmp_path):
    write_image_pairs(config)
    twin = dataclasses.replace(config, folder=tmp_path / "twin")

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        write_image_pairs(twin, stop)
    with pytest.raises(ValueError, match=f"holds no {INDEX_NAME}"):
        load_image_pairs(twin.folder)
    kept = {path.name: path.stat().st_mtime_ns for path in twin.folder.glob("*.safetensors")}
    assert len(kept) == 2
    write_image_pairs(twin)
    names = sorted(path.name for path in config.folder.iterdir())
    assert names == sorted(path.name for path in twin.folder.iterdir())
    for name in names:
        assert (config.folder / name).read_bytes() == (twin.folder / name).read_bytes()
    for name, written in kept.items():
        assert (twin.folder / name).stat().st_mtime_ns == written


def test_a_folder_of_another_config_is_refused(config):
    write_image_pairs(config)
    with pytest.raises(ValueError, match="another config"):
        write_image_pairs(dataclasses.replace(config, seed=1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sides": ()}, "sides"),
        ({"sides": (12,)}, "sides: 12 is not a positive multiple of 8"),
        ({"scales": (0.0, 1.0)}, "scales"),
        ({"scales": (2.0, 1.0)}, "scales"),
        ({"shard_tiles": 0}, "shard_tiles: 0"),
    ],
)
def test_a_config_that_cannot_be_is_refused(config, change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, **change)
