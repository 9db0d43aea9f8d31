"""Preparation of any photographs: every container, broken ones, resumption, no feature network."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from fit_models.autoencoder import Autoencoder
from fit_models.patches import patchify
from fit_training.autoencoder.autoencoder_folder import autoencoder_folder
from fit_training.loop.data import LatentDataset
from fit_training.loop.trainer import Trainer
from fit_training.preparation.fit_rule import FitRule
from fit_training.preparation.image_variants import VariantConfig
from fit_training.preparation.latent_shards import read_index, read_shard
from fit_training.preparation.prepare import SKIPPED, PrepareConfig, prepare_latents
from support.photograph_sources import (
    FILES_SIZES,
    WRITERS,
    Files,
    encoded,
    invented_files,
    write_folder,
)
from support.small_autoencoders import write_small_autoencoder
from support.toy_run import toy_run

SMALL = VariantConfig(num_variants=2, min_area=48**2, max_area=64**2, max_side=96)


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_autoencoder(tmp_path_factory.mktemp("autoencoder"))


@pytest.fixture
def config(autoencoder: Path, tmp_path: Path) -> PrepareConfig:
    """Five photographs in a folder, shards of two, no feature network."""
    return PrepareConfig(
        photographs=write_folder(tmp_path / "photos", invented_files()),
        destination=tmp_path / "latents",
        autoencoder=autoencoder,
        variants=SMALL,
        images_per_shard=2,
    )


def truncated(files: Files, *paths: str) -> dict[str, bytes]:
    return {path: data[:-60] if path in paths else data for path, data in files.items()}


def skipped_in(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / SKIPPED).read_text().splitlines()]


def contents(folder: Path) -> dict[str, Any]:
    """The index without what names the container."""
    index = read_index(folder)
    del index["sources"]["photographs"]
    return index


def test_the_same_photographs_give_the_same_latents_from_any_container(
    config: PrepareConfig, tmp_path: Path
):
    found = []
    for kind, write in WRITERS.items():
        (tmp_path / kind).mkdir()
        path = write(tmp_path / kind / "photos", invented_files())
        made = replace(config, photographs=path, destination=tmp_path / kind / "latents")
        prepare_latents(made)
        found.append(contents(made.destination))  # with the sha256 of every shard
    assert len(found) == len(WRITERS)
    assert all(index == found[0] for index in found)


def test_broken_photographs_are_left_out_counted_and_listed(config: PrepareConfig):
    files = truncated(invented_files(), "ant/b.png")
    files["bee/empty.jpg"] = b""
    write_folder(config.photographs, files)
    made = prepare_latents(config)
    assert (made.num_photographs, made.num_images, made.num_classes) == (4, 8, 3)
    listed = skipped_in(config.destination)
    assert {row["path"] for row in listed} == {"ant/b.png", "bee/empty.jpg"}
    assert [each.path for each in made.skipped] == [row["path"] for row in listed]
    assert all(row["reason"] for row in listed)
    index = read_index(config.destination)
    for variant in range(2):
        rows = [row for row in index["shards"] if row["variant"] == variant]
        shards = [read_shard(config.destination, row, verify=True) for row in rows]
        photos = torch.cat([shard["photo"] for shard in shards]).tolist()
        labels = torch.cat([shard["label"] for shard in shards]).tolist()
        paths = [index["photographs"][photo] for photo in photos]
        assert sorted(paths) == [path for path in FILES_SIZES if path != "ant/b.png"]
        names = [index["classes"][label]["name"] for label in labels]
        assert names == [path.split("/")[0] for path in paths]


def test_a_stopped_run_with_broken_photographs_goes_on_to_the_same_index(
    config: PrepareConfig, tmp_path: Path
):
    write_folder(config.photographs, truncated(invented_files(), "ant/b.png", "watch/d.png"))
    unbroken = replace(config, destination=tmp_path / "unbroken")
    prepare_latents(unbroken)

    class Stopped(Exception):
        pass

    def stop(done: int, _total: int) -> None:
        if done > stops[0]:
            raise Stopped

    stops = [0]
    with pytest.raises(Stopped):
        prepare_latents(config, stop)
    for after in (2, 4, 5, 7, 9):  # stopped after every shard
        stops[0] = after
        with pytest.raises(Stopped):
            prepare_latents(config, stop)
    stops[0] = 10
    prepare_latents(config, stop)
    assert read_index(config.destination) == read_index(unbroken.destination)
    assert skipped_in(config.destination) == skipped_in(unbroken.destination)
    assert len(skipped_in(config.destination)) == 2


def test_a_shard_of_broken_photographs_alone_is_no_file_and_not_tried_again(
    config: PrepareConfig,
):
    one = replace(config, images_per_shard=1)
    write_folder(config.photographs, truncated(invented_files(), "ant/b.png"))
    prepare_latents(one)
    index = read_index(one.destination)
    assert len(index["shards"]) == 2 * 4
    assert len(index["skipped"]) == 2
    assert len(list(one.destination.glob("*.safetensors"))) == 2 * 4
    before = (one.destination / "index.json").stat().st_ino
    prepare_latents(one)
    assert (one.destination / "index.json").stat().st_ino == before
    assert len(LatentDataset(one.destination)) == 2 * 4


@pytest.mark.parametrize("damage", ["header", "pixels"])
def test_if_all_are_broken_that_is_an_error(config: PrepareConfig, damage: str):
    files = invented_files()
    cut = {path: b"" if damage == "header" else data[:-60] for path, data in files.items()}
    write_folder(config.photographs, cut)
    with pytest.raises(ValueError, match="none of the 5 in"):
        prepare_latents(config)


@pytest.mark.parametrize("cut", [True, False])
def test_a_damaged_shard_is_made_again(config: PrepareConfig, cut: bool):
    prepare_latents(config)
    index = read_index(config.destination)
    first, second = (config.destination / row["file"] for row in index["shards"][:2])
    data, inode = first.read_bytes(), second.stat().st_ino
    first.write_bytes(data[:-100] if cut else data[:-1] + bytes([data[-1] ^ 1]))
    prepare_latents(config)
    assert first.read_bytes() == data
    assert second.stat().st_ino == inode  # whole, and left alone
    assert read_index(config.destination) == index


def test_a_folder_that_changed_meanwhile_is_refused(config: PrepareConfig):
    prepare_latents(config)
    write_folder(config.photographs, {"ant/new.png": encoded(Image.new("RGB", (32, 32)))})
    with pytest.raises(ValueError, match="was begun with other"):
        prepare_latents(config)


def test_without_a_feature_network_there_are_no_features(config: PrepareConfig, tmp_path: Path):
    prepare_latents(config)
    index = read_index(config.destination)
    assert index["alignment_dim"] == 0
    assert set(index["sources"]) == {"photographs", "autoencoder"}
    assert "features" not in read_shard(config.destination, index["shards"][0])
    assert not list(config.destination.glob("pca*"))
    data = LatentDataset(config.destination)
    batch = data.batch(data.epoch(1000, 1.0, 0, 0)[0])
    assert batch.features.shape == (len(batch.tokens), 0)
    with pytest.raises(ValueError, match=r"alignment_basis: .* without a feature_network"):
        replace(config, alignment_basis=tmp_path / "pca.safetensors")


def test_training_without_features_needs_alignment_weight_0(config: PrepareConfig, tmp_path: Path):
    prepare_latents(config)
    run = toy_run(config.destination, tmp_path / "run")
    message = (
        r"alignment_weight is 0\.5, but .*latents holds no features; "
        r"set alignment_weight=0 or prepare with --feature-network"
    )
    with pytest.raises(ValueError, match=message):
        Trainer(run)
    trainer = Trainer(replace(run, alignment_weight=0.0))
    scalars = trainer.train_step(next(trainer.steps()))
    assert scalars["loss"] > 0


def test_fits_rule_makes_crops_of_large_photographs_only(config: PrepareConfig):
    fit = replace(config, variants=FitRule(48))
    prepare_latents(fit)
    index = read_index(fit.destination)
    assert index["options"]["rule"] == "fit"
    large = [path for path, size in FILES_SIZES.items() if min(size) > 48]
    for variant in range(4):
        rows = [row for row in index["shards"] if row["variant"] == variant]
        shards = [read_shard(fit.destination, row) for row in rows]
        photos = torch.cat([shard["photo"] for shard in shards]).tolist()
        paths = sorted(index["photographs"][photo] for photo in photos)
        assert paths == (list(FILES_SIZES) if variant < 2 else large)
        grids = torch.cat([shard["grid"] for shard in shards])
        assert (grids.prod(dim=1) <= 9).all()
        assert variant < 2 or (grids == 3).all()
        assert {int(flip) for shard in shards for flip in shard["flip"]} == {variant % 2}


def test_an_autoencoder_may_be_a_bundles(config: PrepareConfig, tmp_path: Path):
    embedded = autoencoder_folder(Path("embedded"))
    assert embedded.name == "vae"
    assert autoencoder_folder(embedded.parent) == embedded
    assert autoencoder_folder(config.autoencoder) == config.autoencoder
    with pytest.raises(ValueError, match="autoencoder: no such folder"):
        autoencoder_folder(tmp_path / "absent")


def test_latents_of_a_distribution_are_its_mean(config: PrepareConfig, tmp_path: Path):
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    torch.manual_seed(0)
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,  # pyright: ignore[reportArgumentType]
        up_block_types=("UpDecoderBlock2D",) * 4,  # pyright: ignore[reportArgumentType]
        block_out_channels=(8, 8, 8, 8),  # pyright: ignore[reportArgumentType]
        norm_num_groups=4,
    ).save_pretrained(tmp_path / "kl")
    plain = replace(config, autoencoder=tmp_path / "kl", variants=FitRule(64, mixed=False))
    prepare_latents(plain)
    index = read_index(plain.destination)
    shard = read_shard(plain.destination, index["shards"][0])
    path = plain.photographs / index["photographs"][int(shard["photo"][0])]
    with Image.open(path) as image:
        pixels = plain.variants.pixels(image, 0, 0, 0)
    network = Autoencoder.from_folder(tmp_path / "kl").to(dtype=torch.bfloat16)
    (tokens,) = patchify(network.encode(pixels[None]), 2)
    torch.testing.assert_close(shard["tokens"][: len(tokens)].float(), tokens, atol=0.02, rtol=0.02)
