"""Laws of the autoencoder wrapper: sizes, ranges, the factor applied once, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from safetensors.torch import load_file, save_file

from fit_models.autoencoder import WEIGHTS_NAME, Autoencoder

SCALING_FACTOR, SHIFT_FACTOR = 0.25, 0.5


def tiny_network() -> Any:
    torch.manual_seed(0)
    return AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 0),
    )


def kl_network() -> Any:
    torch.manual_seed(0)
    network_class: Any = AutoencoderKL  # whose annotations allow no second stage
    return network_class(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=SCALING_FACTOR,
        shift_factor=SHIFT_FACTOR,
    )


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Path:
    tiny_network().save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def images_B3HW() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, 3, 16, 40), generator=generator, dtype=torch.uint8)


def test_a_folder_gives_back_the_network_that_was_saved(tiny_folder, images_B3HW):
    loaded = Autoencoder.from_folder(tiny_folder)
    saved = Autoencoder(tiny_network())
    latents_BChw = saved.encode(images_B3HW)
    assert torch.equal(loaded.encode(images_B3HW), latents_BChw)
    assert torch.equal(loaded.decode(latents_BChw), saved.decode(latents_BChw))


@pytest.mark.parametrize(("network", "downsampling"), [(tiny_network(), 8), (kl_network(), 2)])
def test_a_latent_is_smaller_by_the_downsampling(network, downsampling, images_B3HW):
    autoencoder = Autoencoder(network)
    latents_BChw = autoencoder.encode(images_B3HW)
    images = autoencoder.decode(latents_BChw)
    assert autoencoder.downsampling == downsampling
    assert latents_BChw.shape == (2, 4, 16 // downsampling, 40 // downsampling)
    assert latents_BChw.dtype == torch.float32
    assert images.shape == images_B3HW.shape
    assert images.dtype == torch.uint8
    assert images.is_contiguous()


def test_scaling_and_shift_are_applied_once_in_each_direction(images_B3HW):
    network = kl_network().eval()
    autoencoder = Autoencoder(network)
    with torch.no_grad():
        raw = network.encode(images_B3HW / 127.5 - 1).latent_dist.mean
        pixels = network.decode(raw).sample
    latents_BChw = autoencoder.encode(images_B3HW)
    torch.testing.assert_close(latents_BChw, (raw - SHIFT_FACTOR) * SCALING_FACTOR)
    by_hand = (127.5 * pixels + 128).clamp(0, 255).to(torch.uint8)
    assert (autoencoder.decode(latents_BChw).int() - by_hand.int()).abs().max() <= 1


@pytest.mark.parametrize(
    ("value", "level"),
    [(-1.0, 0), (1.0, 255), (-7.0, 0), (7.0, 255), (0.0, 128), (-1 + 2.98 / 255, 1)],
)
def test_a_value_becomes_the_nearest_level(value, level, monkeypatch):
    network = tiny_network()
    monkeypatch.setattr(network.decoder, "forward", lambda x: torch.full((1, 3, 8, 8), value))
    image = Autoencoder(network).decode(torch.zeros(1, 4, 1, 1))
    assert image.unique().tolist() == [level]


def test_every_level_survives_a_perfect_network(monkeypatch):
    levels_B3HW = torch.arange(256, dtype=torch.uint8).view(1, 1, 8, 32).expand(1, 3, 8, 32)
    network = tiny_network()
    monkeypatch.setattr(network.encoder, "forward", lambda x: x)
    monkeypatch.setattr(network.decoder, "forward", lambda x: x)
    autoencoder = Autoencoder(network)
    autoencoder.latent_channels = 3
    assert torch.equal(autoencoder.decode(autoencoder.encode(levels_B3HW)), levels_B3HW)


def test_bfloat16_is_near_float32_and_leaves_the_weights_alone(images_B3HW):
    autoencoder = Autoencoder(tiny_network())
    latents_BChw = autoencoder.encode(images_B3HW)
    exact, coarse = (
        autoencoder.decode(latents_BChw),
        autoencoder.decode(latents_BChw, torch.bfloat16),
    )
    assert autoencoder.dtype == torch.float32
    # 8 bits of mantissa: about one level of 255 around 0, two at the ends of the range
    assert (exact.int() - coarse.int()).abs().max() <= 3
    assert autoencoder.to(dtype=torch.bfloat16).dtype == torch.bfloat16
    assert (exact.int() - autoencoder.decode(latents_BChw).int()).abs().max() <= 3


def test_a_type_the_weights_cannot_be_used_in_is_refused():
    autoencoder = Autoencoder(tiny_network()).to(dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"dtype: torch\.float32 .* torch\.bfloat16"):
        autoencoder.decode(torch.zeros(1, 4, 1, 1), torch.float32)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 12, 16), "height: 12 is not a positive multiple of 8"),
        ((1, 3, 16, 9), "width: 9 is not a positive multiple of 8"),
        ((1, 3, 0, 8), "height: 0 is not a positive multiple of 8"),
        ((1, 4, 16, 16), r"images: shape \[1, 4, 16, 16\]"),
        ((3, 16, 16), r"images: shape \[3, 16, 16\]"),
    ],
)
def test_images_of_another_shape_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        Autoencoder(tiny_network()).encode(torch.zeros(shape, dtype=torch.uint8))


def test_images_that_are_not_bytes_are_refused():
    with pytest.raises(ValueError, match=r"images: dtype torch\.float32"):
        Autoencoder(tiny_network()).encode(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("shape", [(1, 16, 2, 2), (4, 2, 2)])
def test_latents_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"latents: shape .* is not \[B, 4, h, w\]"):
        Autoencoder(tiny_network()).decode(torch.zeros(shape))


def test_a_folder_without_a_config_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        Autoencoder.from_folder(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"_class_name": "VQModel"}'])
def test_a_config_of_something_else_is_refused(tiny_folder, text):
    (tiny_folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"_class_name: .* AutoencoderTiny|is not JSON"):
        Autoencoder.from_folder(tiny_folder)


def test_a_folder_without_weights_is_refused(tiny_folder):
    (tiny_folder / WEIGHTS_NAME).unlink()
    with pytest.raises(ValueError, match=f"holds no {WEIGHTS_NAME}"):
        Autoencoder.from_folder(tiny_folder)


@pytest.mark.parametrize("change", ["missing", "unexpected", "narrower", "broken"])
def test_weights_of_another_network_are_refused(tiny_folder, change):
    path = tiny_folder / WEIGHTS_NAME
    weights = load_file(path)
    name = "decoder.layers.0.bias"
    if change == "missing":
        del weights[name]
    elif change == "unexpected":
        weights["decoder.layers.99.bias"] = torch.zeros(8)
    elif change == "narrower":
        weights[name] = weights[name][:4].clone()
    save_file(weights, path)
    if change == "broken":
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="autoencoder: "):
        Autoencoder.from_folder(tiny_folder)


def test_half_precision_files_become_float32(tiny_folder):
    path = tiny_folder / WEIGHTS_NAME
    save_file({name: value.half() for name, value in load_file(path).items()}, path)
    assert Autoencoder.from_folder(tiny_folder).dtype == torch.float32


def test_the_class_is_read_from_the_config(tmp_path):
    kl_network().save_pretrained(tmp_path)
    loaded = Autoencoder.from_folder(tmp_path)
    assert loaded.class_name == json.loads((tmp_path / "config.json").read_text())["_class_name"]
    assert (loaded.scaling_factor, loaded.shift_factor) == (SCALING_FACTOR, SHIFT_FACTOR)
