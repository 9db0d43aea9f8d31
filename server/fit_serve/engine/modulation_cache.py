"""AdaLN rows by (timestep, label): the null label's row is shared by everyone at that timestep.

Dimension key: R rows asked for, M values of a row.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from fit_models.modulation import StackedModulation

Key = tuple[float, int]


class ModulationCache:
    """Least recently used rows in one slab on the device.

    Attributes:
        hits, misses: look-ups so far.
    """

    def __init__(
        self, stacked: StackedModulation, num_rows: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._stacked = stacked
        self._device = device
        self._slab = torch.zeros(num_rows, stacked.row_values, device=device, dtype=dtype)
        self._slots: OrderedDict[Key, int] = OrderedDict()
        self.hits = self.misses = 0

    @property
    def num_bytes(self) -> int:
        """Memory of the slab."""
        return self._slab.nbytes

    def rows(self, keys: Sequence[Key]) -> Tensor:
        """Rows of the given keys (all different), in their order: [R, M].

        A step with more keys than the slab has rows computes what does not fit without keeping it.
        """
        known = [key in self._slots for key in keys]
        for key, is_known in zip(keys, known, strict=True):
            if is_known:
                self._slots.move_to_end(key)
        missing = [key for key, is_known in zip(keys, known, strict=True) if not is_known]
        self.hits += len(keys) - len(missing)
        self.misses += len(missing)
        if len(keys) > self._slab.shape[0]:
            return self._compute(keys)
        if missing:
            slots = self._free_slots(len(missing))
            self._slots.update(zip(missing, slots, strict=True))
            self._slab[torch.tensor(slots, device=self._device)] = self._compute(missing)
        wanted = torch.tensor([self._slots[key] for key in keys], device=self._device)
        return self._slab.index_select(0, wanted)

    def _free_slots(self, count: int) -> list[int]:
        """Slots never used yet, then those of the keys not asked for the longest."""
        first_new = len(self._slots)
        fresh = list(range(first_new, min(first_new + count, self._slab.shape[0])))
        return fresh + [self._slots.popitem(last=False)[1] for _ in range(count - len(fresh))]

    def _compute(self, keys: Sequence[Key]) -> Tensor:
        timestep_R = torch.tensor([key[0] for key in keys], device=self._device)
        label_R = torch.tensor([key[1] for key in keys], device=self._device)
        return self._stacked.rows(timestep_R, label_R)
