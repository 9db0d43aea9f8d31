"""Rotary tables on the device, one per resolution, in one slab with a bounded number of rows.

A token of a packed batch holds the row of its table entry, so building a batch moves integers.
Least recently used tables go first; those of the current step and of protected grids stay.

Dimension key: P rows of the slab, E head dim, N tokens of a grid.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection

import torch
from torch import Tensor

from fit_models.device import upload

Grid = tuple[int, int]


class RopeCache:
    """A slab of cos/sin rows with a first-fit allocator.

    Attributes:
        cos, sin: [P, E/2] fp32 on the device; replaced by larger ones if one step needs more.
        hits, misses: look-ups so far.
        evictions: tables dropped or moved so far; rows told before the last one may be others now.
        protected: grids that are not dropped, for a step under way still reads their rows.
    """

    def __init__(
        self,
        make_table: Callable[[int, int], tuple[Tensor, Tensor]],
        num_rows: int,
        widths: tuple[int, int],
        device: torch.device,
    ) -> None:
        self._make_table = make_table
        self._starts: OrderedDict[Grid, int] = OrderedDict()
        self.cos = torch.zeros(num_rows, widths[0], device=device)
        self.sin = torch.zeros(num_rows, widths[1], device=device)
        self.hits = self.misses = self.evictions = 0
        self.protected: frozenset[Grid] = frozenset()

    @property
    def num_bytes(self) -> int:
        """Memory of the slab."""
        return self.cos.nbytes + self.sin.nbytes

    def rows_of(self, grids: Collection[Grid]) -> dict[Grid, int]:
        """First row of each grid's table, all valid at the same time until the next call."""
        needed = set(grids)
        for grid in sorted(needed):
            if grid in self._starts:
                self.hits += 1
                self._starts.move_to_end(grid)
            else:
                self.misses += 1
                self._place(grid, needed)
        return {grid: self._starts[grid] for grid in needed}

    def _place(self, grid: Grid, needed: Collection[Grid]) -> None:
        size = grid[0] * grid[1]
        start = self._gap(size)
        while start is None:
            kept = self.protected.union(needed)
            victim = next((g for g in self._starts if g not in kept), None)
            self.evictions += 1
            if victim is None:
                self._grow(size)
            else:
                del self._starts[victim]
            start = self._gap(size)
        cos, sin = self._make_table(*grid)
        self.cos[start : start + size] = upload(cos, self.cos.device)
        self.sin[start : start + size] = upload(sin, self.sin.device)
        self._starts[grid] = start

    def _gap(self, size: int) -> int | None:
        """First row of a free run of `size` rows."""
        end = 0
        for grid, start in sorted(self._starts.items(), key=lambda item: item[1]):
            if start - end >= size:
                return end
            end = start + grid[0] * grid[1]
        return end if self.cos.shape[0] - end >= size else None

    def _grow(self, size: int) -> None:
        """One step needs more than the slab holds: append rows; what is there stays where it is."""
        more = max(size, self.cos.shape[0])
        # Both or neither: memory may run out in between.
        self.cos, self.sin = (
            torch.cat((slab, slab.new_zeros(more, slab.shape[1]))) for slab in (self.cos, self.sin)
        )
