"""How alike two sets of images are: Frechet distance, Inception Score, precision and recall.

Knows features, class scores and the formulas as ADM's evaluator uses them (arXiv:2105.05233), which
the tables of DiT, SiT and FiT were made with. Knows nothing of networks, files or pictures.

Dimension key: n, m images of a set, C channels of a feature, K outputs of a classifier.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SCORE_SPLIT = 5000
NEIGHBOURS = 3
_ROWS = 1024


@dataclass(frozen=True)
class Normal:
    """A normal distribution in float64: mean [C], covariance [C, C]."""

    mean: Tensor
    covariance: Tensor

    def __post_init__(self) -> None:
        channels = self.mean.shape[0] if self.mean.ndim == 1 else -1
        if self.covariance.shape != (channels, channels):
            raise ValueError(
                f"covariance: shape {tuple(self.covariance.shape)} does not match a mean of shape "
                f"{tuple(self.mean.shape)}"
            )

    @classmethod
    def fit(cls, features: Tensor) -> Normal:
        """Mean and unbiased covariance of features [n, C].

        Raises:
            ValueError: they are no [n, C] with n at least 2.
        """
        if features.ndim != 2 or len(features) < 2:
            raise ValueError(
                f"features: shape {tuple(features.shape)}, expected [n, C] with n at least 2"
            )
        values = features.double()
        covariance = torch.cov(values.T).reshape(values.shape[1], values.shape[1])
        return cls(values.mean(dim=0), covariance)

    def distance(self, other: Normal) -> float:
        """Frechet distance, squared as usual (Heusel et al., arXiv:1706.08500, equation 6).

        |mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)). The trace of the root is the sum of the roots
        of the eigenvalues of the symmetric matrix S1^(1/2) S2 S1^(1/2).

        Raises:
            ValueError: the other has another number of channels.
        """
        if self.mean.shape != other.mean.shape:
            raise ValueError(
                f"features: {len(self.mean)} channels, the reference has {len(other.mean)}"
            )
        difference = self.mean.double() - other.mean.double()
        first, second = self.covariance.double(), other.covariance.double()
        variances, directions = torch.linalg.eigh(first)
        root = (directions * variances.clamp_min(0).sqrt()) @ directions.T
        cross = torch.linalg.eigvalsh(root @ second @ root).clamp_min(0).sqrt().sum()
        distance = difference.square().sum() + first.trace() + second.trace() - 2 * cross
        return max(distance.item(), 0.0)


def inception_score(logits: Tensor, split: int = SCORE_SPLIT) -> float:
    """Mean over parts of the set of exp(mean KL(p(y|x) || p(y))) (Salimans et al., 1606.03498).

    Args:
        logits: [n, K], in an order that has nothing to do with classes where n exceeds `split`:
            a part with few of the classes scores low.
        split: images of a part; the last part may be smaller.

    Raises:
        ValueError: there is no image.
    """
    if logits.ndim != 2 or not len(logits):
        raise ValueError(f"logits: shape {tuple(logits.shape)}, expected [n, K] with n at least 1")
    scores = []
    for part in logits.double().split(split):
        log_shares = part.log_softmax(dim=1)
        shares = log_shares.exp()
        entropy_gain = torch.special.entr(shares.mean(dim=0)).sum() - torch.special.entr(
            shares
        ).sum(dim=1)
        scores.append(entropy_gain.mean().exp())
    return torch.stack(scores).mean().item()


@dataclass(frozen=True)
class PrecisionRecall:
    """Shares, 0 to 1.

    Attributes:
        precision: of the generated images, those that lie within the reference.
        recall: of the reference, those that lie within the generated images.
    """

    precision: float
    recall: float


def precision_and_recall(
    generated: Tensor, reference: Tensor, neighbours: int = NEIGHBOURS, rows: int = _ROWS
) -> PrecisionRecall:
    """Improved precision and recall (Kynkaanniemi et al., arXiv:1904.06991, equations 1 to 3).

    A set covers the balls around its images that reach to each one's k-th nearest neighbour in the
    set. Distances are float32, `rows` of them against a whole set at a time; ADM computes them in
    float16 where they do not overflow, so its shares may differ in the third digit.

    Args:
        generated: features [n, C].
        reference: features [m, C]; the papers' are those of 10 000 photographs.
        neighbours: k; more images than that are needed in either set.
        rows: bounds the memory, `rows` times the larger set.

    Raises:
        ValueError: a set is too small, or the channels differ.
    """
    for name, features in (("generated", generated), ("reference", reference)):
        if features.ndim != 2 or len(features) <= neighbours:
            raise ValueError(
                f"{name}: shape {tuple(features.shape)}, expected [n, C] with n above {neighbours}"
            )
    if generated.shape[1] != reference.shape[1]:
        raise ValueError(
            f"generated: {generated.shape[1]} channels, the reference has {reference.shape[1]}"
        )
    # Distances do not change with the origin, and are more exact near it.
    centre = reference.double().mean(dim=0)
    generated, reference = (
        (features.double() - centre).float() for features in (generated, reference)
    )
    return PrecisionRecall(
        precision=_covered(generated, reference, neighbours, rows),
        recall=_covered(reference, generated, neighbours, rows),
    )


def _covered(features: Tensor, manifold: Tensor, neighbours: int, rows: int) -> float:
    """Share of the features within a ball of the manifold."""
    radii = torch.cat(
        [
            _squared_distances(part, manifold).kthvalue(neighbours + 1, dim=1).values
            for part in manifold.split(rows)  # itself is the nearest
        ]
    )
    inside = [
        (_squared_distances(part, manifold) <= radii).any(dim=1) for part in features.split(rows)
    ]
    return torch.cat(inside).double().mean().item()


def _squared_distances(first: Tensor, second: Tensor) -> Tensor:
    """[n, m] of [n, C] and [m, C]."""
    products = first @ second.T
    lengths = first.square().sum(dim=1)[:, None] + second.square().sum(dim=1)
    return (lengths - 2 * products).clamp_min(0)
