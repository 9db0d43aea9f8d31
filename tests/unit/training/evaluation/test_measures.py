import math

import pytest
import torch
from torch import Tensor

from fit_training.evaluation.measures import (
    NearestPhotographs,
    extract_features,
    fit_linear_probe,
    frechet_distance,
    nearest_photographs,
)
from fit_training.feature_network import FeatureNetwork, load_feature_network, network_input
from support.feature_weights import write_feature_weights


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def clusters(num_classes: int, each: int, dim: int, spread: float, seed: int = 0):
    """Labelled features around one centre a class; a linear probe can tell them apart."""
    centres = normal(num_classes, dim, seed=99)
    labels = torch.arange(num_classes).repeat_interleave(each)
    return centres[labels] + spread * normal(len(labels), dim, seed=seed), labels


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> FeatureNetwork:
    path = tmp_path_factory.mktemp("weights") / "features.safetensors"
    return load_feature_network(write_feature_weights(path))


def test_features_do_not_depend_on_the_batch(network: FeatureNetwork):
    generator = torch.Generator().manual_seed(3)
    sizes = [(30, 50), (64, 64), (17, 90)]
    images = [
        torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes
    ]
    together = extract_features(network, images, batch_size=2)
    alone = torch.cat([extract_features(network, [image]) for image in images])
    assert together.shape == (3, 1280)
    assert (together[0] - together[1]).abs().max() > 0.01  # the images do differ
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-3)


def test_an_image_of_the_networks_size_is_not_resampled(network: FeatureNetwork):
    generator = torch.Generator().manual_seed(4)
    image = torch.randint(0, 256, (3, 224, 224), dtype=torch.uint8, generator=generator)
    with torch.inference_mode():
        expected = network.pooled(network_input(image[None]))
    torch.testing.assert_close(extract_features(network, [image]), expected)


def test_no_images_have_no_features(network: FeatureNetwork):
    assert extract_features(network, []).shape == (0, 1280)


def test_a_probe_tells_separable_classes_apart_on_unseen_features():
    train, train_labels = clusters(5, 40, 16, spread=0.3)
    unseen, unseen_labels = clusters(5, 40, 16, spread=0.3, seed=1)
    probe = fit_linear_probe(train, train_labels, 5)
    assert probe.accuracy(unseen, unseen_labels) > 0.97
    assert probe.accuracy(unseen, (unseen_labels + 1) % 5) < 0.03


def test_a_probe_learns_nothing_from_labels_that_mean_nothing():
    generator = torch.Generator().manual_seed(5)
    labels = torch.randint(0, 4, (400,), generator=generator)
    probe = fit_linear_probe(normal(400, 8), labels, 4)
    assert probe.accuracy(normal(2000, 8, seed=1), torch.arange(2000) % 4) < 0.35


def test_a_probe_does_not_mind_the_scale_of_a_channel():
    train, labels = clusters(4, 30, 8, spread=1.0)
    scale, shift = torch.logspace(-2, 2, 8), torch.linspace(-5, 5, 8)
    plain = fit_linear_probe(train, labels, 4).predict(train)
    scaled = fit_linear_probe(train * scale + shift, labels, 4).predict(train * scale + shift)
    assert (plain == scaled).float().mean() > 0.98


def test_a_probe_is_where_its_loss_is_flat():
    train, labels = clusters(3, 30, 6, spread=1.5)
    probe = fit_linear_probe(train, labels, 3, weight_decay=0.01)
    x = (train - probe.mean) / probe.deviation
    weight, bias = probe.weight.clone().requires_grad_(), probe.bias.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(x @ weight.T + bias, labels)
    (loss + 0.005 * weight.square().sum()).backward()
    assert weight.grad is not None
    assert bias.grad is not None
    assert max(weight.grad.abs().max(), bias.grad.abs().max()) < 1e-3


@pytest.mark.parametrize(
    ("labels", "message"),
    [([0, 1], "does not match"), ([0, 1, 3], "outside 0 to 2"), ([-1, 1, 2], "outside 0 to 2")],
)
def test_labels_that_do_not_fit_are_refused(labels: list[int], message: str):
    with pytest.raises(ValueError, match=message):
        fit_linear_probe(normal(3, 4), torch.tensor(labels), 3)


def test_a_set_is_at_no_distance_from_itself():
    features = normal(300, 24) @ normal(24, 24, seed=1)
    assert frechet_distance(features, features) < 1e-8
    assert frechet_distance(features, features.flip(0)) < 1e-8


def test_moving_a_set_adds_the_square_of_the_way():
    features, way = normal(200, 12), torch.linspace(-1, 2, 12)
    expected = way.double().square().sum().item()
    assert frechet_distance(features + way, features) == pytest.approx(expected, rel=1e-5)


def test_stretching_a_set_adds_the_stretched_variance():
    features = (normal(200, 12) @ normal(12, 12, seed=1)).double()
    features -= features.mean(dim=0)
    expected = (2.5 - 1) ** 2 * torch.cov(features.T).trace().item()
    assert frechet_distance(2.5 * features, features) == pytest.approx(expected, rel=1e-6)


def test_the_distance_is_that_of_two_known_normals():
    # Covariances that do not commute: the root of a 2 x 2 matrix's eigenvalues sums to
    # sqrt(trace + 2 sqrt(determinant)).
    first = normal(400, 2).double() @ torch.tensor([[2.0, 0.3], [0.0, 0.5]]).double()
    second = normal(500, 2, seed=1).double() @ torch.tensor([[0.7, -0.9], [0.4, 1.5]]).double()
    one, other = torch.cov(first.T), torch.cov(second.T)
    product = one @ other
    root_trace = math.sqrt(product.trace() + 2 * math.sqrt(torch.linalg.det(product)))
    means = (first.mean(dim=0) - second.mean(dim=0)).square().sum().item()
    expected = means + one.trace().item() + other.trace().item() - 2 * root_trace
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(second, first) == pytest.approx(expected, rel=1e-9)


def test_fewer_images_than_channels_still_have_a_distance():
    few, many = normal(10, 64), normal(500, 64, seed=1)
    assert math.isfinite(frechet_distance(few, many))
    assert frechet_distance(few, many) > frechet_distance(normal(400, 64, seed=2), many)


def test_a_copy_is_found_and_a_stranger_is_far():
    reference = normal(50, 32)
    copied = reference[[7, 3]] + 1e-4 * normal(2, 32, seed=1)
    found = nearest_photographs(torch.cat([copied, normal(3, 32, seed=2)]), reference)
    assert found.indices[:2].tolist() == [7, 3]
    assert found.distances[:2].max() < 1e-6
    assert found.distances[2:].min() > 0.2


def test_the_summary_names_mean_and_percentiles():
    found = NearestPhotographs(torch.linspace(0, 1, 101), torch.zeros(101, dtype=torch.long))
    assert found.summary() == pytest.approx(
        {"mean": 0.5, "p5": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95}
    )


@pytest.mark.parametrize("measure", [frechet_distance, nearest_photographs])
def test_sets_that_cannot_be_compared_are_refused(measure):
    with pytest.raises(ValueError, match="features: 4 channels, the reference has 5"):
        measure(normal(6, 4), normal(6, 5))
    with pytest.raises(ValueError, match=r"features: shape \(0, 4\)"):
        measure(normal(0, 4), normal(6, 4))
    with pytest.raises(ValueError, match=r"reference: shape \(6,\)"):
        measure(normal(6, 4), normal(6))
