"""Rotary tables on the device, one per resolution, in one slab with a bounded number of rows.

A table is known by its rows and columns, and by how it is stretched where that changes with time.
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
from fit_models.families import TableKey


class RopeCache:
    """A slab of cos/sin rows with a first-fit allocator.

    Attributes:
        cos, sin: [P, E/2] fp32 on the device; replaced by larger ones if one step needs more.
        hits, misses: look-ups so far.
        evictions: tables dropped or moved so far; rows told before the last one may be others now.
        protected: tables that are not dropped, for a step under way still reads their rows.
    """

    def __init__(
        self,
        make_table: Callable[..., tuple[Tensor, Tensor]],
        num_rows: int,
        widths: tuple[int, int],
        device: torch.device,
    ) -> None:
        """`make_table` takes what a key consists of."""
        self._make_table = make_table
        self._starts: OrderedDict[TableKey, int] = OrderedDict()
        self.cos = torch.zeros(num_rows, widths[0], device=device)
        self.sin = torch.zeros(num_rows, widths[1], device=device)
        self.hits = self.misses = self.evictions = 0
        self.protected: frozenset[TableKey] = frozenset()

    @property
    def num_bytes(self) -> int:
        """Memory of the slab."""
        return self.cos.nbytes + self.sin.nbytes

    def rows_of(self, tables: Collection[TableKey]) -> dict[TableKey, int]:
        """First row of each table, all valid at the same time until the next call."""
        needed = set(tables)
        for table in sorted(needed, key=_order):
            if table in self._starts:
                self.hits += 1
                self._starts.move_to_end(table)
            else:
                self.misses += 1
                self._place(table, needed)
        return {table: self._starts[table] for table in needed}

    def _place(self, table: TableKey, needed: Collection[TableKey]) -> None:
        size = table[0] * table[1]
        start = self._gap(size)
        while start is None:
            kept = self.protected.union(needed)
            victim = next((t for t in self._starts if t not in kept), None)
            self.evictions += 1
            if victim is None:
                self._grow(size)
            else:
                del self._starts[victim]
            start = self._gap(size)
        cos, sin = self._make_table(*table)
        self.cos[start : start + size] = upload(cos, self.cos.device)
        self.sin[start : start + size] = upload(sin, self.sin.device)
        self._starts[table] = start

    def _gap(self, size: int) -> int | None:
        """First row of a free run of `size` rows."""
        end = 0
        for table, start in sorted(self._starts.items(), key=lambda item: item[1]):
            if start - end >= size:
                return end
            end = start + table[0] * table[1]
        return end if self.cos.shape[0] - end >= size else None

    def _grow(self, size: int) -> None:
        """One step needs more than the slab holds: append rows; what is there stays where it is."""
        more = max(size, self.cos.shape[0])
        # Both or neither: memory may run out in between.
        self.cos, self.sin = (
            torch.cat((slab, slab.new_zeros(more, slab.shape[1]))) for slab in (self.cos, self.sin)
        )


def _order(table: TableKey) -> tuple[int, int, str]:
    return table[0], table[1], repr(table[2:])
