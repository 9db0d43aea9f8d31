"""Laws of the reconstruction loss: nothing at equality, and each term sees what it is for."""

import pytest
import torch
from torch.nn import functional as F

from fit_training.autoencoder.reconstruction import (
    LossWeights,
    ReconstructionLoss,
    colour_distance,
    edge_distance,
    psnr,
    texture_distance,
)
from fit_training.feature_network import load_feature_network
from support.feature_weights import write_feature_weights

WITHOUT_FEATURES = LossWeights(features=0, feature_texture=0, deep_features=0)


@pytest.fixture(scope="module")
def feature_network(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "features.safetensors"
    return load_feature_network(write_feature_weights(path))


def noise(seed: int, scale: float = 0.3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, 32, 48, generator=generator) * scale


def test_equal_images_cost_nothing(feature_network):
    image = noise(0)
    terms = ReconstructionLoss(LossWeights(), feature_network)(image, image, image)
    assert set(terms) == {
        *("pixels", "colour", "edges", "texture", "features", "feature_texture"),
        *("photograph", "deep_features", "total"),
    }
    assert all(value == 0 for value in terms.values())


def test_the_total_is_the_weighted_sum_of_the_terms(feature_network):
    weights = LossWeights(1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0)
    terms = ReconstructionLoss(weights, feature_network)(noise(0), noise(1), noise(2))
    total = sum(getattr(weights, name) * value for name, value in terms.items() if name != "total")
    torch.testing.assert_close(terms["total"], total)
    assert all(value > 0 for value in terms.values())


def test_the_gradient_at_equality_is_finite(feature_network):
    flat = torch.zeros(1, 3, 32, 32, requires_grad=True)
    target = torch.zeros(1, 3, 32, 32)
    ReconstructionLoss(LossWeights(), feature_network)(flat, target, target)["total"].backward()
    assert flat.grad is not None
    assert flat.grad.isfinite().all()


def test_no_gradient_reaches_the_feature_network(feature_network):
    output = noise(0).requires_grad_()
    ReconstructionLoss(LossWeights(), feature_network)(output, noise(1), noise(2))[
        "total"
    ].backward()
    assert all(parameter.grad is None for parameter in feature_network.parameters())


def test_features_without_a_network_are_refused():
    with pytest.raises(ValueError, match="feature_network: needed"):
        ReconstructionLoss(LossWeights(), None)
    ReconstructionLoss(WITHOUT_FEATURES, None)


@pytest.mark.parametrize(("height", "width", "field"), [(24, 32, "height"), (32, 31, "width")])
def test_images_too_small_for_the_windows_are_refused(height, width, field):
    image = torch.zeros(1, 3, height, width)
    with pytest.raises(ValueError, match=f"{field}: .* is less than 32"):
        ReconstructionLoss(WITHOUT_FEATURES, None)(image, image, image)


def test_an_even_shift_is_seen_by_colour_and_not_by_edges_or_texture():
    image = noise(0)
    assert colour_distance(image + 0.25, image) == pytest.approx(0.25, abs=1e-6)
    assert edge_distance(image + 0.25, image) == pytest.approx(0, abs=1e-6)
    assert texture_distance(image + 0.25, image) == pytest.approx(0, abs=1e-6)


def test_texture_prefers_another_noise_to_a_blur_where_pixels_prefer_the_blur():
    target, other = noise(0), noise(1)
    blur = F.avg_pool2d(target, 5, 1, padding=2)
    assert texture_distance(other, target) < 0.3 * texture_distance(blur, target)
    assert F.l1_loss(blur, target) < F.l1_loss(other, target)
    assert edge_distance(blur, target) < edge_distance(other, target)


def test_edges_weigh_fine_error_more_than_smooth_error_of_the_same_size():
    across = torch.linspace(0, 1, 48).expand(1, 3, 32, 48)
    stripes = (torch.arange(48) % 2).float().expand(1, 3, 32, 48)
    target = torch.zeros(1, 3, 32, 48)
    assert across.mean() == pytest.approx(stripes.mean())
    assert edge_distance(stripes, target) > 10 * edge_distance(across, target)


def test_psnr_is_that_of_the_definition_and_one_value_an_image():
    reference = torch.full((2, 3, 8, 8), 100, dtype=torch.uint8)
    images = reference.clone()
    images[1] += 10
    assert psnr(images, reference).tolist() == pytest.approx([float("inf"), 28.1308], abs=1e-4)
