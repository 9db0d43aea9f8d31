import math

import pytest
import torch
from torch import Tensor

from fit_training.evaluation.evaluate import (
    REFERENCE_DRAWS,
    LabelledFeatures,
    class_balanced,
    measure_quality,
)

NAMES = ("ant", "bee", "cat")
DIM = 12


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


CENTRES = 4 * normal(len(NAMES), DIM, seed=99)


def clusters(counts: tuple[int, ...], seed: int, shift: float = 0.0) -> LabelledFeatures:
    """Points around one centre a class; a linear probe tells them apart."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return LabelledFeatures(CENTRES[labels] + normal(len(labels), DIM, seed=seed) + shift, labels)


TRAINING = clusters((60, 30, 40), seed=1)
VALIDATION = clusters((12, 3, 5), seed=2)


def test_pictures_like_photographs_measure_like_photographs():
    report = measure_quality(clusters((10, 10, 10), seed=3), TRAINING, VALIDATION, NAMES)
    assert report.num_generated == 30
    assert report.generated_accuracy == pytest.approx(1.0)
    assert report.relative_accuracy == pytest.approx(1.0)
    # Thirty points in twelve dimensions: of the same distribution, up to what so few allow.
    assert report.frechet.generated == pytest.approx(report.frechet.held_out, rel=0.35)
    assert report.nearest_generated["p50"] == pytest.approx(
        report.nearest_validation["p50"], rel=0.3
    )


def test_pictures_of_another_class_than_asked_for_are_wrong_class_by_class():
    good = clusters((8, 8, 8), seed=3)
    mislabelled = LabelledFeatures(good.features, torch.tensor([0, 2, 1]).repeat_interleave(8))
    report = measure_quality(mislabelled, TRAINING, VALIDATION, NAMES)
    assert [row.generated for row in report.classes] == [1.0, 0.0, 0.0]
    assert [row.num_validation for row in report.classes] == [12, 3, 5]
    assert report.generated_accuracy == pytest.approx(1 / 3)
    assert report.validation_accuracy == pytest.approx(1.0)
    assert report.relative_accuracy == pytest.approx(1 / 3)


def test_photographs_of_classes_weigh_as_the_pictures_do():
    swapped = VALIDATION.labels.clone()
    swapped[:12] = 1  # all of the largest class called by another's name
    wrong = LabelledFeatures(VALIDATION.features, swapped)
    report = measure_quality(clusters((4, 4, 4), seed=3), TRAINING, wrong, NAMES)
    # bee: 3 of 15 right; cat: 5 of 5; ant has no photo left. The plain share would be 8 of 20.
    assert [row.validation for row in report.classes] == [None, 3 / 15, 1.0]
    assert report.validation_accuracy == pytest.approx((3 / 15 + 1.0) / 2)


def test_strange_pictures_are_farther_than_photographs():
    strange = clusters((10, 10, 10), seed=3, shift=2.0)
    report = measure_quality(strange, TRAINING, VALIDATION, NAMES)
    assert report.frechet.generated > 3 * report.frechet.validation
    assert report.frechet.num_images == 30


def test_copies_are_found_out():
    copied = torch.tensor([5, 70, 100])
    fresh = clusters((3, 3, 3), seed=3)
    generated = LabelledFeatures(
        torch.cat((fresh.features, TRAINING.features[copied])),
        torch.cat((fresh.labels, TRAINING.labels[copied])),
    )
    report = measure_quality(generated, TRAINING, VALIDATION, NAMES, num_closest=3)
    assert sorted(report.closest) == [(9, 5), (10, 70), (11, 100)]
    assert report.closer_than_most_photographs >= 3 / 12
    assert report.nearest_generated["p5"] < 1e-6


def test_the_same_sets_give_the_same_report():
    sets = (clusters((5, 5, 5), seed=3), TRAINING, VALIDATION, NAMES)
    assert measure_quality(*sets).to_dict() == measure_quality(*sets).to_dict()
    assert all(math.isfinite(v) for v in measure_quality(*sets).nearest_generated.values())


@pytest.mark.parametrize("per_class", [2, 3, 7, REFERENCE_DRAWS])
def test_balanced_draws_take_every_image_once_before_any_twice(per_class: int):
    draws = class_balanced(VALIDATION, per_class, 3, torch.Generator().manual_seed(0))
    for label in range(3):
        of_class = draws[VALIDATION.labels[draws] == label]
        assert len(of_class) == per_class
        count = torch.bincount(of_class, minlength=20)[VALIDATION.labels == label]
        assert int(count.max() - count.min()) <= 1


def test_sets_that_cannot_be_compared_are_refused_by_name():
    with pytest.raises(ValueError, match="generated: 0 of class cat; at least 1"):
        measure_quality(clusters((3, 3), seed=3), TRAINING, VALIDATION, NAMES)
    with pytest.raises(ValueError, match="training: 1 of class cat; at least 2"):
        measure_quality(clusters((1, 1, 1), seed=3), clusters((3, 3, 1), 1), VALIDATION, NAMES)
    with pytest.raises(ValueError, match="generated: label 2 for 2 classes"):
        measure_quality(clusters((1, 1, 1), seed=3), TRAINING, VALIDATION, NAMES[:2])
    with pytest.raises(ValueError, match="does not match features of shape"):
        LabelledFeatures(torch.zeros(3, 4), torch.zeros(2, dtype=torch.long))
