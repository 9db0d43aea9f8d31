"""Which evaluations of a sequence need the network, and what stands in for the others.

Along a trajectory the prediction changes slowly, so between two evaluations it may be read off
those before: a Taylor line through the last two (order 1), or the last one as it is (order 0). The
plan is fixed before the first step, as in SmoothCache (arXiv:2411.10510), from a profile of the
model that `fit-serve calibrate-cache` measures; what is reused is the network's whole prediction,
so a reused evaluation costs no network at all. Data enter through the profile only: a sequence's
plan depends on its schedule, never on its neighbours.

Knows noise levels and numbers; not tensors, requests or engines.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any

import numpy

LONGEST_REUSE = 5
"""Evaluations in a row that may do without the network."""
FEWEST_COMPUTED = 4
"""Evaluations that a plan computes at least: a line wants something to go by."""


@dataclass(frozen=True)
class PredictionProfile:
    """How the guided prediction of one model behaves on its way, at rising noise levels.

    Attributes:
        sigmas: noise levels, rising.
        slope: root mean square of the prediction's change per unit of sigma.
        curvature: that of its second divided difference.
        sensitivity: change of the finished latent per change of the state at that noise level.
    """

    sigmas: tuple[float, ...]
    slope: tuple[float, ...]
    curvature: tuple[float, ...]
    sensitivity: tuple[float, ...]

    def __post_init__(self) -> None:
        for field in fields(self):
            values = getattr(self, field.name)
            if len(values) != len(self.sigmas) or not values:
                raise ValueError(
                    f"{field.name} has {len(values)} values; there must be as many as sigmas, "
                    f"{len(self.sigmas)}, and at least 1"
                )
            if not all(math.isfinite(value) and value >= 0 for value in values):
                raise ValueError(f"{field.name} must be finite and at least 0: {values}")
        if any(
            after <= before for before, after in zip(self.sigmas, self.sigmas[1:], strict=False)
        ):
            raise ValueError(f"sigmas must rise: {self.sigmas}")

    def at(self, sigma: float) -> tuple[float, float, float]:
        """Slope, curvature and sensitivity at a noise level: linear between the measured ones."""
        right = bisect(self.sigmas, sigma)
        if right in (0, len(self.sigmas)):
            index = min(right, len(self.sigmas) - 1)
            return self.slope[index], self.curvature[index], self.sensitivity[index]
        low, high = self.sigmas[right - 1], self.sigmas[right]
        share = (sigma - low) / (high - low)
        slope, curvature, sensitivity = (
            values[right - 1] + share * (values[right] - values[right - 1])
            for values in (self.slope, self.curvature, self.sensitivity)
        )
        return slope, curvature, sensitivity

    def to_dict(self) -> dict[str, list[float]]:
        """For a file."""
        return {name: [float(f"{v:.4g}") for v in values] for name, values in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PredictionProfile:
        """Read what `to_dict` gave.

        Raises:
            ValueError: a list is missing, of another length, or holds what it must not.
        """
        try:
            lists = {field.name: tuple(map(float, values[field.name])) for field in fields(cls)}
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"step cache profile: {error!r}") from error
        return cls(**lists)


GENERIC_PROFILE = PredictionProfile(
    sigmas=(0.0, 0.25, 0.5, 0.7, 0.8, 0.9, 1.0),
    slope=(3.1, 2.5, 2.5, 4.1, 4.9, 10.0, 10.6),
    curvature=(13.0, 8.3, 10.5, 43.0, 50.0, 200.0, 200.0),
    sensitivity=(0.95, 1.04, 1.25, 1.7, 2.6, 5.1, 7.7),
)
"""For models nobody has measured: predictions bend near the noise end, as a rule."""


def extrapolation(sigma: float, last: float, before: float | None) -> tuple[float, float]:
    """Weights of the last two predictions in the line through them, read at `sigma`.

    `before` None, or equal to `last`, repeats the last prediction.
    """
    if before is None or before == last:
        return 1.0, 0.0
    weight = (sigma - last) / (last - before)
    return 1.0 + weight, -weight


@lru_cache(maxsize=512)
def plan_evaluations(
    sigmas: tuple[float, ...],
    weights: tuple[float, ...],
    scales: tuple[float, ...],
    share: float,
    order: int,
    profile: PredictionProfile,
) -> tuple[bool, ...]:
    """Choose the evaluations that need the network: at most `share` of all, with the least error.

    The error of a reused evaluation is what the profile says of a Taylor line from the two before,
    times how much it moves the state and how much that moves the picture. Nothing is extrapolated
    across a change of the guidance scale, so at least the first evaluation of every stretch with
    one scale is computed.

    Args:
        sigmas: noise level of every evaluation, in order.
        weights: how much each evaluation's prediction moves the state.
        scales: its guidance scale.
        share: above 0, at most 1; `FEWEST_COMPUTED` evaluations are computed whatever it says.
        order: 1 extrapolates, 0 repeats.
        profile: of the model.

    Raises:
        ValueError: share or order out of range.
    """
    if not 0.0 < share <= 1.0:
        raise ValueError(f"share is {share}; it must be above 0 and at most 1")
    if order not in (0, 1):
        raise ValueError(f"order is {order}; it must be 0 or 1")
    count = len(sigmas)
    wanted = min(count, max(FEWEST_COMPUTED, int(share * count + 1e-9)))
    if wanted == count:
        return (True,) * count
    stretches = _stretches(scales)
    error = _Error(sigmas, weights, order, profile)
    fewest = sum(-(-(end - first) // (LONGEST_REUSE + 1)) for first, end in stretches)
    return _least_error(stretches, error, max(wanted, fewest))


class _Error:
    """What reusing one evaluation is estimated to change in the picture."""

    def __init__(
        self,
        sigmas: Sequence[float],
        weights: Sequence[float],
        order: int,
        profile: PredictionProfile,
    ) -> None:
        self._sigmas, self._order = sigmas, order
        behaviour = [profile.at(max(sigma, 0.0)) for sigma in sigmas]
        self._per_gap = [
            abs(w) * s * slope for w, (slope, _, s) in zip(weights, behaviour, strict=True)
        ]
        self._per_area = [
            abs(w) * s * bend for w, (_, bend, s) in zip(weights, behaviour, strict=True)
        ]

    def of(self, before: int | None, last: int, index: int) -> float:
        """Of evaluation `index`, when the last two computed ones are `before` and `last`."""
        gap = abs(self._sigmas[index] - self._sigmas[last])
        if gap == 0.0 and before is not None:  # a corrector: another state at the same noise level
            return self._per_area[index] * (self._sigmas[last] - self._sigmas[before]) ** 2
        if self._order == 0 or before is None or self._sigmas[before] == self._sigmas[last]:
            return self._per_gap[index] * gap
        return self._per_area[index] * gap * abs(self._sigmas[index] - self._sigmas[before])


def _stretches(scales: Sequence[float]) -> list[tuple[int, int]]:
    """(first, end) of the runs of equal guidance scales."""
    starts = [i for i, scale in enumerate(scales) if i == 0 or scale != scales[i - 1]]
    return list(zip(starts, [*starts[1:], len(scales)], strict=True))


def _least_error(
    stretches: Sequence[tuple[int, int]], error: _Error, wanted: int
) -> tuple[bool, ...]:
    """What to compute, at most `wanted` evaluations, for the least error in all.

    Dynamic programming from the end. A state is the last two computed evaluations (before, last);
    an array has its least error by how many may still be computed after `last`.
    """
    cost: dict[tuple[int | None, int], numpy.ndarray] = {}
    following: dict[tuple[int | None, int], numpy.ndarray] = {}
    count = stretches[-1][1]
    for first, end in reversed(stretches):
        for last in range(end - 1, first - 1, -1):
            earliest = max(first, last - LONGEST_REUSE - 1)
            for before in [None] if last == first else range(earliest, last):
                best = numpy.full(wanted, math.inf)
                best_next = numpy.full(wanted, count)
                spent = 0.0
                for index in range(last + 1, min(last + LONGEST_REUSE + 1, end) + 1):
                    after = cost.get((None if index == end else last, index))
                    total = numpy.full(wanted, spent)
                    if after is not None:
                        total[0], total[1:] = math.inf, spent + after[:-1]
                    better = total < best
                    best, best_next = (
                        numpy.where(better, total, best),
                        numpy.where(better, index, best_next),
                    )
                    if index < end:
                        spent += error.of(before, last, index)
                cost[before, last], following[before, last] = best, best_next
    computed = [False] * count
    starts = {first for first, _ in stretches}
    before, last, left = None, 0, wanted - 1
    while last < count:
        computed[last] = True
        index = int(following[before, last][left])
        before, last, left = (None if index in starts else last), index, left - 1
    return tuple(computed)
