"""One optimizer step, cut into micro-batches and dealt out to processes.

Knows how many images and tokens a step has and who takes which of its micro-batches; neither data,
networks nor how processes talk. The cut is the same whatever the number of processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class MicroBatch:
    """What one process does at once.

    Attributes:
        index: place in the step, counted from 0; random draws depend on it.
        images: indices into the dataset.
        image_weight: its share of the step's images; the loss per image is multiplied by it.
        token_weight: its share of the step's tokens; the loss per token is multiplied by it.
    """

    index: int
    images: np.ndarray
    image_weight: float
    token_weight: float


@dataclass(frozen=True)
class OptimizerStep:
    """The images of one optimizer step.

    Attributes:
        images: per micro-batch the indices into the dataset.
        tokens: per micro-batch the number of its tokens.
    """

    images: tuple[np.ndarray, ...]
    tokens: tuple[int, ...]

    @property
    def num_images(self) -> int:
        """Images of the step over all processes."""
        return sum(len(images) for images in self.images)

    @property
    def num_tokens(self) -> int:
        """Tokens of the step over all processes."""
        return sum(self.tokens)

    def share(self, rank: int, world_size: int) -> list[MicroBatch]:
        """Micro-batches rank, rank + world_size, ... of the step.

        Every process gets equally many, since all take part in every exchange of weights: one that
        has none left repeats the first micro-batch of the step with weight zero.
        """
        rounds = -(-len(self.images) // world_size)
        return [self._micro_batch(rank + world_size * i) for i in range(rounds)]

    def _micro_batch(self, index: int) -> MicroBatch:
        if index >= len(self.images):
            return MicroBatch(index, self.images[0], 0.0, 0.0)
        return MicroBatch(
            index,
            self.images[index],
            len(self.images[index]) / self.num_images,
            self.tokens[index] / self.num_tokens,
        )


def optimizer_steps(
    plan: Sequence[np.ndarray], lengths: np.ndarray, micro_batches: int, start: int = 0
) -> Iterator[OptimizerStep]:
    """Cut an epoch into steps of `micro_batches`; the last one may have fewer.

    Args:
        plan: the epoch's micro-batches, see `LatentDataset.epoch`.
        lengths: tokens of every image of the dataset.
        micro_batches: of one step.
        start: micro-batches of the epoch that are done already.
    """
    for first in range(start, len(plan), micro_batches):
        images = tuple(plan[first : first + micro_batches])
        yield OptimizerStep(images, tuple(int(lengths[part].sum()) for part in images))


def check_shares(micro_batches: int, world_size: int) -> None:
    """Refuse a step that cannot be dealt out evenly.

    Raises:
        ValueError: `micro_batches` is no multiple of the number of processes.
    """
    if micro_batches % world_size:
        raise ValueError(
            f"micro_batches is {micro_batches}; "
            f"it must be a multiple of the number of processes, {world_size}"
        )
