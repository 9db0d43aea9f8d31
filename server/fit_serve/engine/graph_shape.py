"""What one CUDA graph of the packed network is captured for: its bounds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class GraphShape:
    """Bounds that are frozen into a graph.

    Attributes:
        tokens: T, exactly.
        sequences: most sequences, and most modulation rows.
        max_length: tokens of the longest sequence, at most. Some attention launches a grid of
            `sequences` times `max_length`, most of which finds nothing to do: keep both small.
    """

    tokens: int
    sequences: int
    max_length: int

    def __post_init__(self) -> None:
        if min(self.tokens, self.sequences, self.max_length) < 1:
            raise ValueError(f"{self}: every bound must be at least 1")
        if self.sequences * self.max_length < self.tokens:
            raise ValueError(f"{self}: so many sequences of that length do not make the tokens")

    @property
    def grid(self) -> int:
        """What attention launches, at worst."""
        return self.sequences * self.max_length


def graph_shapes(
    buckets: Iterable[int], max_sequences: int, longest: int | None = None, shortest: int = 64
) -> list[GraphShape]:
    """One shape for every bucket.

    Args:
        buckets: totals of tokens.
        max_sequences: of a step, both branches of guided ones and the padding counted.
        longest: tokens of the longest sequence that is served; None takes the bucket.
        shortest: fewer tokens than that in all sequences of a step are left to the eager network.
    """
    shapes = []
    for tokens in sorted(set(buckets)):
        max_length = tokens if longest is None else min(tokens, longest)
        sequences = min(max_sequences, tokens // shortest + 2)  # a remainder, and the padding
        shapes.append(GraphShape(tokens, max(sequences, -(-tokens // max_length)), max_length))
    return shapes
