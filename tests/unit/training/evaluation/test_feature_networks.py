"""Networks that measure are told apart by what is in their files."""

import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fit_training.evaluation.bundle_features import BundleFeatures
from fit_training.evaluation.feature_networks import (
    EfficientNetFeatures,
    InceptionFeatures,
    TorchScriptFeatures,
    open_feature_source,
)
from support.feature_weights import write_feature_weights
from support.inception_weights import invented_inception_weights
from support.toy_bundle import make_toy_bundle


class MeanColour(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float().mean(dim=(2, 3))


class MeanLevel(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float().mean(dim=(1, 2, 3))


def write_script(path: Path, module: nn.Module) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(module).save(str(path))
    return path


def images(*sizes: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8) for size in sizes
    ]


def test_efficientnet_is_known_by_its_tensors(tmp_path: Path):
    source = open_feature_source(str(write_feature_weights(tmp_path / "weights.bin")))
    assert isinstance(source, EfficientNetFeatures)
    seen = source.observe(images((40, 30)))
    assert seen.pooled.shape == (1, 1280)
    assert seen.spatial is None
    assert seen.logits is None


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_inception_is_known_by_its_tensors_in_either_format(tmp_path: Path, ending: str):
    path, weights = tmp_path / f"weights.{ending}", invented_inception_weights()
    if ending == "pth":
        torch.save(weights, path)
    else:
        save_file(weights, path)
    source = open_feature_source(str(path))
    assert isinstance(source, InceptionFeatures)
    pair = images((40, 60), (299, 299))
    seen = source.observe(pair)
    assert seen.spatial is not None
    assert seen.logits is not None
    assert (seen.pooled.shape, seen.spatial.shape) == ((2, 2048), (2, 2023))
    torch.testing.assert_close(source.features(pair[1:])[0], seen.pooled[1], rtol=1e-3, atol=1e-3)


def test_a_torchscript_file_is_used_as_it_is(tmp_path: Path):
    source = open_feature_source(str(write_script(tmp_path / "colour.pt", MeanColour())))
    assert isinstance(source, TorchScriptFeatures)
    mixed = images((8, 8), (8, 8), (5, 9), (8, 8))
    expected = torch.stack([image.float().mean(dim=(1, 2)) for image in mixed])
    torch.testing.assert_close(source.features(mixed), expected)


def test_a_torchscript_file_must_give_a_row_an_image(tmp_path: Path):
    source = open_feature_source(str(write_script(tmp_path / "level.pt", MeanLevel())))
    with pytest.raises(ValueError, match=r"gives \(2,\) for 2 images, not \[2, C\]"):
        source.features(images((8, 8), (8, 8)))


def test_a_bundle_measures_without_any_other_file(tmp_path: Path):
    source = open_feature_source(str(make_toy_bundle(tmp_path / "bundle")))
    assert isinstance(source, BundleFeatures)
    assert source.name == "bundle toy"
    several = images((32, 48), (20, 33), (600, 700))
    together = source.features(several)
    assert together.shape[0] == 3
    assert (together[0] - together[1]).abs().max() > 0.01
    for number, image in enumerate(several):  # an image does not notice its neighbours
        torch.testing.assert_close(
            source.features([image])[0], together[number], rtol=1e-4, atol=1e-4
        )


def test_a_fingerprint_is_of_the_weights(tmp_path: Path):
    first, other = (make_toy_bundle(tmp_path / str(seed), seed) for seed in (0, 1))
    prints = [open_feature_source(str(folder)).fingerprint() for folder in (first, first, other)]
    assert prints[0] == prints[1] != prints[2]
    same = [write_script(tmp_path / name, MeanColour()) for name in ("a.pt", "b.pt")]
    assert len({open_feature_source(str(same[0])).fingerprint() for _ in range(2)}) == 1


def test_what_is_no_network_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="no such weights file"):
        open_feature_source(str(tmp_path / "absent.pth"))
    (tmp_path / "text").write_text("hello, this is text")
    with pytest.raises(ValueError, match="holds no weights"):
        open_feature_source(str(tmp_path / "text"))
    (tmp_path / "cut").write_bytes((1000).to_bytes(8, "little") + b"{ cut")
    with pytest.raises(ValueError, match="is damaged"):
        open_feature_source(str(tmp_path / "cut"))
    with pytest.raises(ValueError, match="not a bundle"):
        open_feature_source(str(tmp_path))
