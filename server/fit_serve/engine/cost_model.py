"""What a step costs: seconds against tokens and lengths, as measured on one device with one model.

Knows numbers only; not devices, networks or clocks. A step is a floor of launches and then a rise
with its tokens (`points`); attention adds to it with the square of a sequence's length, which is
told by pairs of a query and a key beyond those that the points already hold.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any, NamedTuple


class Sample(NamedTuple):
    """One measured step.

    Attributes:
        tokens: packed tokens, padding included.
        lengths: of the sequences, one entry per branch.
        seconds: what it took.
    """

    tokens: int
    lengths: tuple[int, ...]
    seconds: float


@dataclass(frozen=True)
class CostModel:
    """Seconds of a step; never falls when a sequence is added or grows.

    Attributes:
        points: (tokens, seconds) of measured steps, tokens rising, seconds never falling.
        reference_length: tokens of each sequence the points were taken with.
        seconds_per_pair: for each query-key pair beyond those that sequences of the reference
            length would have; shorter sequences count as if they had that length.

    Raises:
        ValueError: a field cannot be; the message names it and its value.
    """

    points: tuple[tuple[int, float], ...]
    reference_length: int
    seconds_per_pair: float

    def __post_init__(self) -> None:
        _check_points(self.points)
        if not _is_whole(self.reference_length) or self.reference_length < 1:
            raise ValueError(
                f"reference_length is {self.reference_length!r}; "
                "it must be a whole number of at least 1"
            )
        if not _is_finite(self.seconds_per_pair) or self.seconds_per_pair < 0:
            raise ValueError(
                f"seconds_per_pair is {self.seconds_per_pair!r}; "
                "it must be a finite number of at least 0"
            )

    def step_seconds(self, lengths: Iterable[int]) -> float:
        """Seconds of a step over sequences of these lengths, one entry per branch; 0 for none."""
        tokens = pairs = 0
        for length in lengths:
            tokens += length
            pairs += _extra_pairs(length, self.reference_length)
        return self.tokens_step_seconds(tokens) + self.seconds_per_pair * pairs

    def tokens_step_seconds(self, tokens: int) -> float:
        """Seconds of a step of so many tokens in sequences of the reference length; 0 for none.

        Raises:
            ValueError: tokens is negative.
        """
        if tokens < 0:
            raise ValueError(f"tokens is {tokens}; it must be at least 0")
        if tokens == 0:
            return 0.0
        after = bisect_right(self.points, tokens, key=lambda point: point[0])
        if after == 0:
            return self.points[0][1]
        left, seconds = self.points[after - 1]
        if after == len(self.points):
            return seconds + (tokens - left) * self._last_slope()
        right, seconds_right = self.points[after]
        return seconds + (seconds_right - seconds) * (tokens - left) / (right - left)

    def tokens_per_s(self, tokens: int) -> float:
        """Tokens a second of a step of so many tokens (at least 1), at the reference length."""
        return tokens / self.tokens_step_seconds(tokens)

    def knee(self, share: float = 0.95) -> int:
        """The least measured tokens that reach this share of the best measured tokens a second.

        Below it a step leaves the device idle; past it a larger one only makes everyone wait.

        Raises:
            ValueError: the share is not in (0, 1].
        """
        if not 0 < share <= 1:
            raise ValueError(f"share is {share}; it must be above 0 and at most 1")
        enough = share * max(tokens / seconds for tokens, seconds in self.points)
        return next(tokens for tokens, seconds in self.points if tokens / seconds >= enough)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for JSON."""
        return {**asdict(self), "points": [list(point) for point in self.points]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CostModel:
        """Read what `to_dict` wrote.

        Raises:
            ValueError: a field is missing, unknown or cannot be; the message names it.
        """
        if set(values) != (known := {f.name for f in fields(cls)}):
            raise ValueError(f"cost model has the fields {sorted(values)}; needed: {sorted(known)}")
        points = values["points"]
        if not isinstance(points, list) or not all(isinstance(p, list) for p in points):
            raise ValueError(f"points is {points!r}; it must be a list of [tokens, seconds]")
        return cls(**{**values, "points": tuple(tuple(point) for point in points)})

    def _last_slope(self) -> float:
        """Seconds a token past the last point: since the last point that took less time.

        Where none did, time is taken to grow with the tokens from here on: a cautious guess.
        """
        tokens, seconds = self.points[-1]
        for earlier, less in reversed(self.points):
            if less < seconds:
                return (seconds - less) / (tokens - earlier)
        return seconds / tokens


def fit_cost_model(samples: Iterable[Sample]) -> CostModel:
    """Turn measurements into a cost model.

    The best of equal steps counts. Steps made of sequences of one and the shortest length become
    the points, smoothed so that noise cannot make time fall (least squares under that order). The
    other steps give the cost of a pair: least squares over what they took beyond the points, as a
    share of what they took.

    Raises:
        ValueError: no sample holds sequences of one length only, or one cannot be.
    """
    best: dict[tuple[int, tuple[int, ...]], float] = {}
    for tokens, lengths, seconds in samples:
        if not _is_finite(seconds) or seconds <= 0:
            raise ValueError(f"a sample's seconds is {seconds!r}; it must be above 0 and finite")
        if tokens < sum(lengths) or min(lengths, default=0) < 1:
            raise ValueError(f"a sample's tokens is {tokens}, its lengths are {list(lengths)}")
        best[tokens, lengths] = min(seconds, best.get((tokens, lengths), math.inf))
    reference = min((lengths[0] for _, lengths in best if len(set(lengths)) == 1), default=None)
    if reference is None:
        raise ValueError("no sample holds sequences of one length only")
    of_reference: dict[int, float] = {}
    for (tokens, lengths), seconds in best.items():
        if set(lengths) == {reference}:
            of_reference[tokens] = min(seconds, of_reference.get(tokens, math.inf))
    tokens_of_points = sorted(of_reference)
    smooth = _never_falling([of_reference[tokens] for tokens in tokens_of_points])
    model = CostModel(tuple(zip(tokens_of_points, smooth, strict=True)), reference, 0.0)
    over = square = 0.0
    for (tokens, lengths), seconds in best.items():
        pairs = sum(_extra_pairs(length, reference) for length in lengths)
        over += pairs * (seconds - model.tokens_step_seconds(tokens)) / seconds**2
        square += (pairs / seconds) ** 2
    return CostModel(model.points, reference, max(0.0, over / square) if square else 0.0)


def _extra_pairs(length: int, reference_length: int) -> int:
    return length * max(0, length - reference_length)


def _never_falling(values: list[float]) -> list[float]:
    """The never falling sequence nearest in squares: neighbours that fall share their mean."""
    blocks: list[tuple[float, int]] = []  # (sum, how many)
    for value in values:
        total, count = value, 1
        while blocks and blocks[-1][0] / blocks[-1][1] > total / count:
            earlier_total, earlier_count = blocks.pop()
            total, count = total + earlier_total, count + earlier_count
        blocks.append((total, count))
    return [total / count for total, count in blocks for _ in range(count)]


def _check_points(points: tuple[tuple[int, float], ...]) -> None:
    if not points:
        raise ValueError("points is empty; at least one is needed")
    for point in points:
        if len(point) != 2 or not _is_whole(point[0]) or not _is_finite(point[1]):
            raise ValueError(f"points has {point!r}; each must be (whole tokens, finite seconds)")
        if point[0] < 1 or point[1] <= 0:
            raise ValueError(f"points has {point!r}; tokens and seconds must be above 0")
    for before, after in pairwise(points):
        if after[0] <= before[0] or after[1] < before[1]:
            raise ValueError(
                f"points has {after!r} after {before!r}; tokens must rise, seconds never fall"
            )


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return -math.inf < value < math.inf  # math.isfinite overflows on very large integers
