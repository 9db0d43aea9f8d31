"""How good a model is: features of its pictures beside those of photographs, figures out.

Knows labelled features and what to compare with what. Knows nothing of engines, networks or files;
the features are those of `feature_network.py`, so figures compare only with figures made so.

Dimension key: n images, C channels of a feature, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fit_training.evaluation.measures import (
    LinearProbe,
    fit_linear_probe,
    frechet_distance,
    nearest_photographs,
)

PROBE_WEIGHT_DECAY = 0.01
# Draws per class of the Frechet reference, so that no class weighs more than another.
REFERENCE_DRAWS = 100


@dataclass(frozen=True)
class LabelledFeatures:
    """Features [n, C] and labels [n] of a set of images."""

    features: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or self.labels.shape != self.features.shape[:1]:
            raise ValueError(
                f"labels: shape {tuple(self.labels.shape)} does not match features of shape "
                f"{tuple(self.features.shape)}"
            )

    def __getitem__(self, images: Tensor) -> LabelledFeatures:
        return LabelledFeatures(self.features[images], self.labels[images])


@dataclass(frozen=True)
class ClassQuality:
    """Probe accuracy of one class, 0 to 1; a class without validation photos has None there."""

    name: str
    generated: float
    validation: float | None
    num_validation: int


@dataclass(frozen=True)
class FrechetDistances:
    """To the same class-balanced training photos; the sets are of one size, classes equally often.

    Attributes:
        generated: of the pictures.
        validation: of validation photos, repeated where a class has too few.
        held_out: of training photos that are left out of the reference.
        num_images: of each of the three sets.
    """

    generated: float
    validation: float
    held_out: float
    num_images: int


@dataclass(frozen=True)
class QualityReport:
    """What `measure_quality` finds; all accuracies are 0 to 1.

    Attributes:
        num_generated: pictures measured.
        generated_accuracy: share of pictures that the probe gives the class they were asked for.
        validation_accuracy: the same of validation photos, classes weighing as in the pictures.
        relative_accuracy: the first over the second.
        classes: the same, one by one.
        frechet: distances of whole sets.
        nearest_generated: cosine distances of pictures to their nearest training photo.
        nearest_validation: of validation photos.
        closer_than_most_photographs: share of pictures nearer to a training photo than 95 % of
            validation photos are; 0.05 would be as photos.
        closest: (picture, training photo) of the smallest distances, nearest first.
    """

    num_generated: int
    generated_accuracy: float
    validation_accuracy: float
    relative_accuracy: float
    classes: tuple[ClassQuality, ...]
    frechet: FrechetDistances
    nearest_generated: dict[str, float]
    nearest_validation: dict[str, float]
    closer_than_most_photographs: float
    closest: tuple[tuple[int, int], ...]

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for JSON."""
        return asdict(self)


def measure_quality(
    generated: LabelledFeatures,
    training: LabelledFeatures,
    validation: LabelledFeatures,
    class_names: Sequence[str],
    seed: int = 0,
    num_closest: int = 8,
) -> QualityReport:
    """Compare pictures with photographs in feature space.

    The probe is fitted on all training photos. `seed` decides which photos stand for a class in the
    Frechet distances.

    Raises:
        ValueError: a set is empty, a label is out of range, or a class has no picture or fewer
            than two training photos.
    """
    num_classes = len(class_names)
    _check_counts("generated", generated, class_names, 1)
    _check_counts("training", training, class_names, 2)
    probe = fit_linear_probe(training.features, training.labels, num_classes, PROBE_WEIGHT_DECAY)
    classes = _by_class(probe, generated, validation, class_names)
    balanced = _class_means(classes)
    nearest = nearest_photographs(generated.features, training.features)
    nearest_validation = nearest_photographs(validation.features, training.features)
    near = torch.quantile(nearest_validation.distances, 0.05)
    order = nearest.distances.argsort()[:num_closest]
    return QualityReport(
        num_generated=len(generated.labels),
        generated_accuracy=balanced[0],
        validation_accuracy=balanced[1],
        relative_accuracy=balanced[0] / balanced[1] if balanced[1] else 0.0,
        classes=classes,
        frechet=_frechet_distances(generated, training, validation, num_classes, seed),
        nearest_generated=nearest.summary(),
        nearest_validation=nearest_validation.summary(),
        closer_than_most_photographs=(nearest.distances < near).double().mean().item(),
        closest=tuple(zip(order.tolist(), nearest.indices[order].tolist(), strict=True)),
    )


def class_balanced(
    images: LabelledFeatures, per_class: int, num_classes: int, generator: torch.Generator
) -> Tensor:
    """Indices of `per_class` draws of every class that has images: each once before any twice."""
    draws = []
    for label in range(num_classes):
        members = (images.labels == label).nonzero()[:, 0]
        if not len(members):
            continue
        whole, rest = divmod(per_class, len(members))
        shuffled = members[torch.randperm(len(members), generator=generator)]
        draws += [members.repeat(whole), shuffled[:rest]]
    return torch.cat(draws)


def _by_class(
    probe: LinearProbe,
    generated: LabelledFeatures,
    validation: LabelledFeatures,
    class_names: Sequence[str],
) -> tuple[ClassQuality, ...]:
    right = probe.predict(generated.features) == generated.labels
    right_validation = probe.predict(validation.features) == validation.labels
    rows = []
    for label, name in enumerate(class_names):
        of_class = right_validation[validation.labels == label]
        rows.append(
            ClassQuality(
                name=name,
                generated=right[generated.labels == label].double().mean().item(),
                validation=of_class.double().mean().item() if len(of_class) else None,
                num_validation=len(of_class),
            )
        )
    return tuple(rows)


def _class_means(classes: Sequence[ClassQuality]) -> tuple[float, float]:
    """Mean accuracy over classes, of pictures and of validation photos."""
    photographs = [row.validation for row in classes if row.validation is not None]
    if not photographs:
        raise ValueError("validation: no photo of any class")
    pictures = sum(row.generated for row in classes) / len(classes)
    return pictures, sum(photographs) / len(photographs)


def _frechet_distances(
    generated: LabelledFeatures,
    training: LabelledFeatures,
    validation: LabelledFeatures,
    num_classes: int,
    seed: int,
) -> FrechetDistances:
    """Distances of three class-balanced sets of one size to what is left of the training photos."""
    generator = torch.Generator().manual_seed(seed)
    per_class = int(torch.bincount(generated.labels, minlength=num_classes).min())
    kept_back = _held_out(training, per_class, num_classes, generator)
    rest = training[~kept_back]
    reference = rest.features[class_balanced(rest, REFERENCE_DRAWS, num_classes, generator)]
    figures = []
    for images in (generated, validation, training[kept_back]):
        draws = class_balanced(images, per_class, num_classes, generator)
        figures.append(frechet_distance(images.features[draws], reference))
    return FrechetDistances(*figures, num_images=per_class * num_classes)


def _held_out(
    training: LabelledFeatures, per_class: int, num_classes: int, generator: torch.Generator
) -> Tensor:
    """Mask [n]: `per_class` photos of each class, but never more than half of a class."""
    mask = torch.zeros(len(training.labels), dtype=torch.bool)
    for label in range(num_classes):
        members = (training.labels == label).nonzero()[:, 0]
        count = min(per_class, len(members) // 2)
        mask[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return mask


def _check_counts(
    name: str, images: LabelledFeatures, class_names: Sequence[str], fewest: int
) -> None:
    if len(images.labels) and int(images.labels.max()) >= len(class_names):
        raise ValueError(f"{name}: label {int(images.labels.max())} for {len(class_names)} classes")
    counts = torch.bincount(images.labels, minlength=len(class_names)).tolist()
    for class_name, count in zip(class_names, counts, strict=True):
        if count < fewest:
            raise ValueError(f"{name}: {count} of class {class_name}; at least {fewest} are needed")
