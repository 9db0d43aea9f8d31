"""Laws of generated pairs: latents and images agree, and are made again the same."""

import dataclasses

import pytest
import torch

from fit_models.autoencoder import Autoencoder
from fit_models.bundle import load_bundle
from fit_training.autoencoder.generated_pairs import (
    GeneratedConfig,
    decoded_pairs,
    sample_latents,
    write_generated_pairs,
)
from fit_training.autoencoder.image_pairs import INDEX_NAME, load_image_pairs
from support.small_autoencoders import write_small_autoencoder
from support.toy_bundle import make_toy_bundle


@pytest.fixture
def config(tmp_path) -> GeneratedConfig:
    return GeneratedConfig(
        model=str(make_toy_bundle(tmp_path / "bundle")),
        teacher=write_small_autoencoder(tmp_path / "teacher", seed=3),
        folder=tmp_path / "generated",
        count=7,
        sizes=((2, 3), (3, 2)),
        shard_pictures=3,
    )


def test_every_image_is_the_teachers_of_its_latents(config):
    write_generated_pairs(config)
    pairs = load_image_pairs(config.folder)
    teacher = Autoencoder.from_folder(config.teacher).to(dtype=torch.bfloat16)
    assert [tuple(group.decoded_B3HW.shape[2:]) for group in pairs] == [(32, 48), (48, 32)]
    assert [len(group.decoded_B3HW) for group in pairs] == [4, 3]
    for group in pairs:
        assert group.images_B3HW is None
        for latents_4hw, decoded_3HW in zip(group.latents_B4hw, group.decoded_B3HW, strict=True):
            assert torch.equal(teacher.decode(latents_4hw[None])[0], decoded_3HW)


def test_latents_are_those_that_the_served_autoencoder_would_decode(config):
    teacher = Autoencoder.from_folder(config.teacher)
    served = Autoencoder.from_folder(config.teacher)
    served.scaling_factor, served.shift_factor = 2.0, 0.25
    latents_B4hw = torch.randn(2, 4, 4, 6, generator=torch.Generator().manual_seed(0))
    pairs = decoded_pairs(latents_B4hw, served, teacher)
    torch.testing.assert_close(
        pairs["latents"].float(), latents_B4hw / 2 + 0.25, atol=2e-3, rtol=2e-3
    )
    assert (pairs["decoded"].int() - served.decode(latents_B4hw).int()).abs().max() <= 1


def test_a_picture_does_not_notice_its_neighbours(config):
    bundle = load_bundle(config.model)
    together = sample_latents(bundle, 2, 3, range(4), seed=1)
    alone = sample_latents(bundle, 2, 3, range(3, 4), seed=1)
    torch.testing.assert_close(together[3:], alone, atol=1e-4, rtol=1e-4)
    assert not torch.equal(together, sample_latents(bundle, 2, 3, range(4), seed=2))


@pytest.mark.parametrize("sampler", ["heun", "sde"])
def test_the_bundles_sampler_is_the_one_used(config, sampler):
    bundle = load_bundle(config.model)
    defaults = dataclasses.replace(bundle.defaults, sampler=sampler)
    other = sample_latents(dataclasses.replace(bundle, defaults=defaults), 2, 2, range(2), 0)
    assert other.isfinite().all()
    assert not torch.equal(other, sample_latents(bundle, 2, 2, range(2), 0))


def test_an_interrupted_folder_is_completed_to_the_same_bytes(config, tmp_path):
    write_generated_pairs(config)
    twin = dataclasses.replace(config, folder=tmp_path / "twin")

    def stop(done: int, total: int) -> None:
        assert total == 7
        if done == 6:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        write_generated_pairs(twin, stop)
    with pytest.raises(ValueError, match=f"holds no {INDEX_NAME}"):
        load_image_pairs(twin.folder)
    write_generated_pairs(twin)
    for path in config.folder.iterdir():
        assert path.read_bytes() == (twin.folder / path.name).read_bytes()


def test_a_folder_of_another_config_is_refused(config):
    write_generated_pairs(config)
    with pytest.raises(ValueError, match="another config"):
        write_generated_pairs(dataclasses.replace(config, seed=1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 0}, "generated: 0 is less than 1"),
        ({"shard_pictures": 0}, "shard_pictures: 0 is less than 1"),
        ({"sizes": ((0, 3),)}, r"sizes: \(0, 3\) has a side of less than 1"),
    ],
)
def test_a_config_that_cannot_be_is_refused(config, change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, **change)
