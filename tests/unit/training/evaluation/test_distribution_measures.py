"""Measures of whole sets: known values, laws, and the definitions written out as loops."""

import math

import pytest
import torch
from torch import Tensor

from fit_training.evaluation.distribution_measures import (
    Normal,
    inception_score,
    precision_and_recall,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_two_known_normals_have_the_known_distance():
    # Diagonal: (3 - 1)^2 + sum of (standard deviations' differences)^2 = 4 + 1 + 4.
    first = Normal(torch.tensor([1.0, 5.0]), torch.diag(torch.tensor([1.0, 9.0])))
    second = Normal(torch.tensor([3.0, 5.0]), torch.diag(torch.tensor([4.0, 1.0])))
    assert first.distance(second) == pytest.approx(9)
    assert second.distance(first) == pytest.approx(9)
    assert first.distance(first) == pytest.approx(0, abs=1e-12)


def test_fitting_finds_mean_and_unbiased_covariance():
    fitted = Normal.fit(torch.tensor([[0.0, 1.0], [2.0, 5.0]]))
    assert fitted.mean.tolist() == [1, 3]
    assert fitted.covariance.tolist() == [[2, 4], [4, 8]]
    assert Normal.fit(torch.tensor([[1.0], [3.0]])).covariance.tolist() == [[2]]


def test_the_same_set_in_any_order_is_at_no_distance():
    features = normal(60, 16) * 10
    fitted = Normal.fit(features)
    assert fitted.distance(Normal.fit(features.flip(0))) < 1e-9


def test_normals_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match=r"covariance: shape \(3, 3\)"):
        Normal(torch.zeros(2), torch.eye(3))
    with pytest.raises(ValueError, match="2 channels, the reference has 3"):
        Normal(torch.zeros(2), torch.eye(2)).distance(Normal(torch.zeros(3), torch.eye(3)))
    with pytest.raises(ValueError, match="n at least 2"):
        Normal.fit(torch.zeros(1, 4))


def test_predictions_that_say_nothing_score_one():
    assert inception_score(torch.zeros(20, 8)) == pytest.approx(1)
    assert inception_score(normal(1, 8).expand(20, 8)) == pytest.approx(1)


def test_certain_predictions_score_the_number_of_classes_seen():
    certain = 1000 * torch.eye(8)
    assert inception_score(certain.repeat(5, 1)) == pytest.approx(8)
    assert inception_score(certain[:3]) == pytest.approx(3)


def test_the_score_is_the_mean_of_the_parts():
    certain = 1000 * torch.eye(8)
    logits = torch.cat([certain[:4], certain[:2], certain[:2], certain[:1]])
    assert inception_score(logits, split=4) == pytest.approx((4 + 2 + 1) / 3)


def test_the_score_is_its_definition_written_out():
    shares = normal(7, 5).double().softmax(dim=1)
    mean = shares.mean(dim=0)
    divergence = 0.0
    for row in shares:
        divergence += sum(float(p) * math.log(p / q) for p, q in zip(row, mean, strict=True)) / 7
    assert inception_score(normal(7, 5)) == pytest.approx(math.exp(divergence), rel=1e-9)


def test_a_set_covers_itself():
    features = normal(40, 6)
    found = precision_and_recall(features, features)
    assert (found.precision, found.recall) == (1, 1)


def test_sets_far_apart_cover_nothing_of_each_other():
    found = precision_and_recall(normal(40, 6), normal(40, 6, seed=1) + 100)
    assert (found.precision, found.recall) == (0, 0)


def test_one_mode_of_two_is_precise_and_recalls_half():
    reference = torch.cat([normal(40, 6), normal(40, 6, seed=1) + 100])
    found = precision_and_recall(reference[:40], reference)
    assert (found.precision, found.recall) == (1, 0.5)


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_precision_and_recall_are_their_definition_written_out(rows: int):
    generated, reference = normal(25, 4) * 1.3, normal(31, 4, seed=1) + 0.5
    found = precision_and_recall(generated, reference, neighbours=2, rows=rows)
    assert found.precision == pytest.approx(share_covered(generated, reference, 2))
    assert found.recall == pytest.approx(share_covered(reference, generated, 2))
    assert 0 < found.precision < 1 > found.recall > 0


def share_covered(features: Tensor, manifold: Tensor, neighbours: int) -> float:
    """How many of the features lie in a ball to the k-th nearest other one of the manifold."""
    radii = []
    for number, centre in enumerate(manifold):
        others = [math.dist(centre, o) for place, o in enumerate(manifold) if place != number]
        radii.append(sorted(others)[neighbours - 1])
    balls = list(zip(manifold, radii, strict=True))
    inside = [any(math.dist(point, centre) <= r for centre, r in balls) for point in features]
    return sum(inside) / len(inside)


def test_sets_too_small_or_of_other_channels_are_refused():
    with pytest.raises(ValueError, match=r"reference: shape \(3, 4\), .* n above 3"):
        precision_and_recall(normal(9, 4), normal(3, 4))
    with pytest.raises(ValueError, match="4 channels, the reference has 5"):
        precision_and_recall(normal(9, 4), normal(9, 5))
    with pytest.raises(ValueError, match="n at least 1"):
        inception_score(torch.zeros(0, 4))
