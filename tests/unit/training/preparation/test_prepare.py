from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fit_models.autoencoder import Autoencoder
from fit_models.patches import patchify
from fit_training.feature_network import load_feature_network
from fit_training.preparation.alignment import load_alignment_basis, token_activations
from fit_training.preparation.image_variants import VariantConfig, choose_variant, render
from fit_training.preparation.latent_preparation import BASIS, LatentPreparation
from fit_training.preparation.latent_shards import read_index, read_shard
from fit_training.preparation.prepare import PrepareConfig, prepare_latents
from fit_training.preparation.sources.opening import open_photographs
from support.feature_weights import write_feature_weights
from support.photograph_archives import write_archive

PHOTOGRAPHS = [("watch", 48, 64), ("ant", 64, 48), ("bee", 64, 64), ("watch", 96, 48)] * 2
SMALL = VariantConfig(num_variants=2, min_area=48**2, max_area=64**2, max_side=96)
CLASS_NAMES = ("watch", "ant")
NUM_CHOSEN = 6


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> PrepareConfig:
    """Eight invented photos, a random autoencoder with stride 8 and random feature weights."""
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

    folder = tmp_path_factory.mktemp("inputs")
    torch.manual_seed(0)
    AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
    ).save_pretrained(folder / "autoencoder")
    return PrepareConfig(
        photographs=write_archive(folder / "photographs.zip", PHOTOGRAPHS),
        destination=folder / "unused",
        autoencoder=folder / "autoencoder",
        feature_network=write_feature_weights(folder / "features.safetensors"),
        class_names=CLASS_NAMES,
        variants=SMALL,
        images_per_shard=4,
        alignment_dim=5,
        alignment_photographs=4,
    )


@pytest.fixture(scope="module")
def prepared(config: PrepareConfig, tmp_path_factory: pytest.TempPathFactory) -> PrepareConfig:
    """A finished run, not to be changed by a test."""
    made = replace(config, destination=tmp_path_factory.mktemp("prepared") / "train")
    prepare_latents(made)
    return made


def test_every_chosen_photo_is_there_once_a_variant(prepared: PrepareConfig):
    index = read_index(prepared.destination)
    for variant in range(SMALL.num_variants):
        rows = [row for row in index["shards"] if row["variant"] == variant]
        assert [row["num_images"] for row in rows] == [4, 2]
        shards = [read_shard(prepared.destination, row, verify=True) for row in rows]
        photos = torch.cat([shard["photo"] for shard in shards]).tolist()
        assert photos == list(range(NUM_CHOSEN))
        for shard in shards:
            assert (shard["flip"] == variant % 2).all()
            num_tokens = int(shard["grid"].prod(dim=1).sum())
            assert shard["tokens"].shape == (num_tokens, 16)
            assert shard["features"].shape == (num_tokens, 5)
            names = [index["classes"][label]["name"] for label in shard["label"].tolist()]
            paths = [index["photographs"][photo] for photo in shard["photo"].tolist()]
            assert [path.split("/")[0] for path in paths] == names


def test_the_index_says_what_was_done(prepared: PrepareConfig):
    index = read_index(prepared.destination)
    assert index["classes"] == [
        {"label": 0, "name": "watch", "text": "watch"},
        {"label": 1, "name": "ant", "text": "ant"},
    ]
    assert index["options"]["min_area"] == SMALL.min_area
    assert index["options"]["seed"] == 0
    assert (index["split"], index["patch_size"], index["alignment_dim"]) == ("train", 2, 5)
    assert set(index["sources"]) == {"photographs", "autoencoder", "feature_network"}


def test_tokens_and_features_are_those_of_the_rendered_photo(prepared: PrepareConfig):
    index = read_index(prepared.destination)
    shard = read_shard(prepared.destination, index["shards"][-1])
    autoencoder = Autoencoder.from_folder(prepared.autoencoder).to(dtype=torch.bfloat16)
    assert prepared.feature_network is not None
    network = load_feature_network(prepared.feature_network).to(torch.bfloat16)
    basis = load_alignment_basis(prepared.destination / BASIS)
    first = int(shard["grid"][0].prod())  # variant 1, image 1 of the last shard: a flipped one
    photo = int(shard["photo"][1])
    with open_photographs(prepared.photographs, CLASS_NAMES) as archive:
        by_path = {photograph.path: photograph for photograph in archive.photographs}
        photograph = by_path[index["photographs"][photo]]
        size = (photograph.width, photograph.height)
        pixels = render(archive.open(photograph), choose_variant(size, SMALL, 0, photo, 1))
    assert [pixels.shape[1] // 16, pixels.shape[2] // 16] == shard["grid"][1].tolist()
    (tokens,) = patchify(autoencoder.encode(pixels[None]), 2)
    features = basis.project(token_activations(network, pixels[None])[0].permute(1, 2, 0))
    # Alone here, in a batch there: bfloat16 (8 bits of mantissa) may be summed in another order.
    stored = shard["tokens"][first : first + len(tokens)].float()
    torch.testing.assert_close(stored, tokens, atol=0.02, rtol=0.02)
    stored = shard["features"][first : first + len(tokens)].float()
    assert (stored - features.flatten(0, 1)).square().mean() < 0.01 * features.square().mean()


def test_a_stopped_run_goes_on_to_the_same_bytes(prepared: PrepareConfig, tmp_path: Path):
    class Stopped(Exception):
        pass

    def stop(done: int, total: int) -> None:
        assert total == NUM_CHOSEN * SMALL.num_variants
        if done >= NUM_CHOSEN:
            raise Stopped

    again = replace(prepared, destination=tmp_path / "train")
    with pytest.raises(Stopped):
        prepare_latents(again, stop)
    half = read_index(again.destination)
    assert [row["variant"] for row in half["shards"]] == [0, 0]  # variant 0 of all photos first
    written = {
        row["file"]: (again.destination / row["file"]).stat().st_ino for row in half["shards"]
    }
    reports: list[int] = []
    prepare_latents(again, lambda done, total: reports.append(done))
    assert reports == [4, 6, 10, 12]
    assert read_index(again.destination) == read_index(prepared.destination)
    for name, inode in written.items():  # not written a second time
        assert (again.destination / name).stat().st_ino == inode


def test_the_number_of_workers_changes_no_byte(prepared: PrepareConfig, tmp_path: Path):
    threads = torch.get_num_threads()
    alone = replace(prepared, destination=tmp_path / "train", num_workers=1)
    prepare_latents(alone)
    assert read_index(alone.destination) == read_index(prepared.destination)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "begun with other"),
        ({"class_names": ("ant", "watch")}, "begun with other"),
        ({"alignment_dim": 6}, "alignment_dim: 6, but the basis has 5 components"),
    ],
)
def test_other_options_for_a_begun_folder_are_refused(
    prepared: PrepareConfig, changes: dict[str, int], message: str
):
    with pytest.raises(ValueError, match=message):
        prepare_latents(replace(prepared, **changes))  # pyright: ignore[reportArgumentType]


def test_validation_photos_get_the_training_folders_basis(prepared: PrepareConfig, tmp_path: Path):
    plain = VariantConfig(num_variants=1, augment=False)
    basis_path = prepared.destination / BASIS
    validation = replace(
        prepared,
        destination=tmp_path / "val",
        split="val",
        variants=plain,
        alignment_basis=basis_path,
    )
    prepare_latents(validation)
    assert (validation.destination / BASIS).read_bytes() == basis_path.read_bytes()
    index = read_index(validation.destination)
    with open_photographs(validation.photographs, CLASS_NAMES) as archive:
        sides = {
            photo.path: [photo.height // 16, photo.width // 16] for photo in archive.photographs
        }
    grids = [
        grid
        for row in index["shards"]
        for grid in read_shard(validation.destination, row)["grid"].tolist()
    ]
    assert grids == [sides[path] for path in index["photographs"]]

    other = load_alignment_basis(basis_path)
    replace(other, mean=other.mean + 1).save(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"alignment_basis: .* is not the one"):
        prepare_latents(replace(validation, alignment_basis=tmp_path / "other.safetensors"))


def test_batches_hold_one_size_and_stay_within_their_pixels(config: PrepareConfig):
    limited = replace(config, max_batch_pixels=2 * 64 * 64)
    with open_photographs(config.photographs, CLASS_NAMES) as archive:
        batches = LatentPreparation(limited, archive).batches(range(NUM_CHOSEN), variant=0)
    assert sorted(image.photo for batch in batches for image in batch) == list(range(NUM_CHOSEN))
    for batch in batches:
        shapes = {image.pixels.shape for image in batch}
        assert len(shapes) == 1
        assert len(batch) == 1 or sum(image.pixels[0].numel() for image in batch) <= 2 * 64 * 64


def test_an_autoencoder_of_another_stride_is_refused(config: PrepareConfig, tmp_path: Path):
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

    AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
    ).save_pretrained(tmp_path)
    wide = replace(config, autoencoder=tmp_path)
    with pytest.raises(ValueError, match="autoencoder: 4 pixels per latent"):
        prepare_latents(wide)


@pytest.mark.parametrize("name", ["images_per_shard", "alignment_dim", "num_workers"])
def test_counts_below_one_are_refused(config: PrepareConfig, name: str):
    with pytest.raises(ValueError, match=f"{name}: 0 is below 1"):
        replace(config, **{name: 0})
