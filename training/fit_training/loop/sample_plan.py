"""Which pictures a run draws on the way, and how.

Knows labels, sizes and steps; not networks (`sample_grid.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

# (rows, columns) in tokens: within the areas that `prepare` draws, and of unlike aspects.
GRIDS = ((8, 8), (8, 12), (12, 8), (10, 10))


@dataclass(frozen=True)
class SamplePlan:
    """Euler steps with guidance of every channel.

    Attributes:
        labels: the network's label of each class of the data, in the order of its class names.
        grids: (rows, columns) in tokens of the pictures of a row.
        num_steps: of the schedule.
        guidance_scale: 1 is none.
    """

    labels: tuple[int, ...]
    grids: tuple[tuple[int, int], ...] = GRIDS
    num_steps: int = 12
    guidance_scale: float = 4.0
