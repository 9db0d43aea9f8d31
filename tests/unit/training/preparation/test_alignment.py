from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from fit_training.feature_network import FeatureNetwork, load_feature_network
from fit_training.preparation.alignment import (
    AlignmentBasis,
    fit_alignment_basis,
    load_alignment_basis,
    token_activations,
)
from support.feature_weights import write_feature_weights


@pytest.fixture(scope="module")
def sample() -> Tensor:
    """Vectors that vary along four directions, less and less, around a mean that is not zero."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(10, 10, generator=generator)).Q[:4]
    amounts = torch.randn(500, 4, generator=generator) * torch.tensor([8.0, 4.0, 2.0, 1.0])
    return amounts @ directions + 3.0


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> FeatureNetwork:
    path = tmp_path_factory.mktemp("weights") / "features.safetensors"
    return load_feature_network(write_feature_weights(path))


def noise(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def test_every_token_has_one_vector(network: FeatureNetwork):
    assert token_activations(network, noise(2, 3, 48, 80)).shape == (2, 1280, 3, 5)


def test_an_image_does_not_notice_its_neighbours_in_the_batch(network: FeatureNetwork):
    images = noise(3, 3, 48, 48)
    together = token_activations(network, images)
    alone = token_activations(network, images[1:2])
    assert (together[0] - together[1]).abs().max() > 0.1  # they do differ
    torch.testing.assert_close(together[1:2], alone, atol=1e-4, rtol=1e-3)


def test_a_vector_describes_the_place_of_its_token(network: FeatureNetwork):
    images = torch.full((2, 3, 160, 160), 128, dtype=torch.uint8)
    images[1, :, 64:80, 112:128] = 255  # the token in row 4, column 7
    activations = token_activations(network, images)
    change = (activations[1] - activations[0]).abs().sum(dim=0)
    # SAME padding puts a vector's centre on the token's lower right corner: half a token late.
    row, column = divmod(int(change.argmax()), 10)
    assert row in (3, 4)
    assert column in (6, 7)


def test_features_are_centred_with_unit_deviation_over_all(sample: Tensor):
    features = fit_alignment_basis(sample, 3).project(sample)
    assert features.shape == (500, 3)
    torch.testing.assert_close(features.mean(dim=0), torch.zeros(3), atol=1e-5, rtol=0)
    assert features.square().mean().sqrt().item() == pytest.approx(1, abs=1e-4)


def test_components_are_uncorrelated_and_fall(sample: Tensor):
    covariance = torch.cov(fit_alignment_basis(sample, 4).project(sample).T)
    torch.testing.assert_close(covariance, covariance.diag().diag(), atol=1e-4, rtol=0)
    variances = covariance.diag()
    assert torch.equal(variances, variances.sort(descending=True).values)


def test_all_directions_that_vary_are_kept(sample: Tensor):
    basis = fit_alignment_basis(sample, 4)
    scale = basis.basis.norm(dim=0)
    torch.testing.assert_close(scale, scale[:1].expand(4))  # one scale for all components
    restored = basis.project(sample) / scale.square() @ basis.basis.T + basis.mean
    torch.testing.assert_close(restored, sample, atol=1e-3, rtol=1e-3)


def test_the_order_of_the_sample_does_not_change_a_sign(sample: Tensor):
    basis = fit_alignment_basis(sample, 4)
    shuffled = fit_alignment_basis(sample.flip(0), 4)
    torch.testing.assert_close(basis.basis, shuffled.basis, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("vectors", "components"), [(500, 11), (500, 0), (4, 4)])
def test_more_components_than_there_are_is_refused(sample: Tensor, vectors: int, components: int):
    with pytest.raises(ValueError, match=f"num_components: {components}"):
        fit_alignment_basis(sample[:vectors], components)


def test_a_basis_comes_back_as_it_was_saved(tmp_path: Path):
    basis = AlignmentBasis(torch.randn(1280), torch.randn(1280, 6))
    basis.save(tmp_path / "pca.safetensors")
    loaded = load_alignment_basis(tmp_path / "pca.safetensors")
    assert loaded.equals(basis)
    assert not loaded.equals(AlignmentBasis(basis.mean, basis.basis + 1))
    assert loaded.num_components == 6


def test_a_file_that_holds_no_basis_is_refused(tmp_path: Path):
    path = tmp_path / "pca.safetensors"
    with pytest.raises(ValueError, match="no such file"):
        load_alignment_basis(path)
    save_file({"mean": torch.zeros(1280)}, path)
    with pytest.raises(ValueError, match=r"holds \['mean'\]"):
        load_alignment_basis(path)
    save_file({"mean": torch.zeros(1280), "basis": torch.zeros(96, 1280)}, path)
    with pytest.raises(ValueError, match=r"not \(1280,\) and \(1280, D\)"):
        load_alignment_basis(path)
