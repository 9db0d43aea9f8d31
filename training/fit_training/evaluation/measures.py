"""How good is a set of images: probe accuracy, Frechet distance, distance to the training photos.

Knows features [n, C] and what is computed from them. Knows nothing of where the images come from;
the features are those of feature_network.py, so figures compare only with figures made here.

Dimension key: n, m images of a set, C channels of a feature, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fit_training.evaluation.distribution_measures import Normal
from fit_training.feature_network import INPUT_SIZE, FeatureNetwork, network_input

PERCENTILES = (5, 25, 50, 75, 95)


@torch.inference_mode()
def extract_features(
    network: FeatureNetwork, images: Sequence[Tensor], batch_size: int = 32
) -> Tensor:
    """Return pooled features, float32 [n, 1280], of uint8 images [3, height, width] of any sizes.

    Each image is squashed to 224 x 224 (bicubic with antialiasing), its aspect not kept. Runs on
    the network's device and in its dtype.
    """
    weight = network.classifier.weight
    features = torch.empty(len(images), network.classifier.in_features)
    for start in range(0, len(images), batch_size):
        group = images[start : start + batch_size]
        x = network_input(torch.stack([_squashed(image) for image in group]))
        x = x.to(weight.device, weight.dtype, memory_format=torch.channels_last)
        features[start : start + len(group)] = network.pooled(x).float()
    return features


def _squashed(image: Tensor) -> Tensor:
    resized = F.interpolate(
        image[None].float(), (INPUT_SIZE, INPUT_SIZE), mode="bicubic", antialias=True
    )
    return resized[0].round().clamp(0, 255)


@dataclass(frozen=True)
class LinearProbe:
    """A linear classifier on standardised features.

    Mean and deviation are [C], weight [K, C], bias [K].
    """

    mean: Tensor
    deviation: Tensor
    weight: Tensor
    bias: Tensor

    def predict(self, features: Tensor) -> Tensor:
        """Return the likeliest label of each image, int64 [n]."""
        standardised = (features.float() - self.mean) / self.deviation
        return (standardised @ self.weight.T + self.bias).argmax(dim=1)

    def accuracy(self, features: Tensor, labels: Tensor) -> float:
        """Return the share of images whose likeliest label is the given one, 0 to 1."""
        _check_labels(features, labels, len(self.bias))
        return (self.predict(features) == labels).double().mean().item()


def fit_linear_probe(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    weight_decay: float = 1e-3,
    max_iterations: int = 200,
) -> LinearProbe:
    """Fit multinomial logistic regression with L-BFGS; loss = mean cross entropy + decay/2 |W|^2.

    Raises `ValueError` when features and labels do not match or a label is out of range.
    """
    _check_labels(features, labels, num_classes)
    x = features.float()
    mean, deviation = x.mean(dim=0), x.std(dim=0, correction=0).clamp_min(1e-6)
    x, y = (x - mean) / deviation, labels.long()
    weight = torch.zeros(num_classes, x.shape[1], requires_grad=True)
    bias = torch.zeros(num_classes, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [weight, bias], max_iter=max_iterations, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = F.cross_entropy(x @ weight.T + bias, y) + weight_decay / 2 * weight.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    return LinearProbe(mean, deviation, weight.detach(), bias.detach())


def frechet_distance(features: Tensor, reference: Tensor) -> float:
    """Return the Frechet distance of two normal distributions fitted to [n, C] and [m, C].

    See `Normal.distance`. Biased upwards for few images: compare sets of the same size only.
    """
    _check_sets(features, reference, 2)
    return Normal.fit(features).distance(Normal.fit(reference))


@dataclass(frozen=True)
class NearestPhotographs:
    """For each image, the cosine distance (0 to 2) to its nearest reference, and its index."""

    distances: Tensor
    indices: Tensor

    def summary(self) -> dict[str, float]:
        """Return the mean and percentiles of the distances: `mean`, `p5`, `p25`, ..., `p95`."""
        values = self.distances.double()
        shares = torch.tensor(PERCENTILES, dtype=torch.float64) / 100
        quantiles = torch.quantile(values, shares).tolist()
        named = {f"p{p}": value for p, value in zip(PERCENTILES, quantiles, strict=True)}
        return {"mean": values.mean().item(), **named}


def nearest_photographs(features: Tensor, reference: Tensor) -> NearestPhotographs:
    """Find the nearest of the reference features [m, C] for each of [n, C]: is it a copy?

    Compare the distances with those of held-out photos to the same reference.
    """
    _check_sets(features, reference, 1)
    mean = reference.double().mean(dim=0)
    unit = F.normalize(features.double() - mean, dim=1)
    reference_unit = F.normalize(reference.double() - mean, dim=1)
    similarity, indices = (unit @ reference_unit.T).max(dim=1)
    return NearestPhotographs(1 - similarity, indices)


def _check_labels(features: Tensor, labels: Tensor, num_classes: int) -> None:
    if features.ndim != 2 or labels.shape != features.shape[:1] or not len(labels):
        raise ValueError(
            f"labels: shape {tuple(labels.shape)} does not match features of shape "
            f"{tuple(features.shape)}, or the set is empty"
        )
    if int(labels.min()) < 0 or int(labels.max()) >= num_classes:
        raise ValueError(
            f"labels: {int(labels.min())} to {int(labels.max())} is outside 0 to {num_classes - 1}"
        )


def _check_sets(features: Tensor, reference: Tensor, fewest: int) -> None:
    for name, found in (("features", features), ("reference", reference)):
        if found.ndim != 2 or len(found) < fewest:
            raise ValueError(
                f"{name}: shape {tuple(found.shape)}, expected [n, C] with n at least {fewest}"
            )
    if features.shape[1] != reference.shape[1]:
        raise ValueError(
            f"features: {features.shape[1]} channels, the reference has {reference.shape[1]}"
        )
