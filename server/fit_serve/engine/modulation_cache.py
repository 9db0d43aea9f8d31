"""AdaLN rows by (timestep, label): the null label's row is shared by everyone at that timestep.

Dimension key: R rows asked for, M values of a row.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fit_models.device import upload
from fit_models.modulation import ModulationSource, rows_one_by_one

Key = tuple[float, int]


class ModulationCache:
    """Least recently used rows in one slab on the device.

    Attributes:
        hits, misses: look-ups so far.
    """

    def __init__(
        self,
        source: ModulationSource,
        num_rows: int,
        device: torch.device,
        dtype: torch.dtype,
        one_by_one: bool = False,
        conditions: Callable[[Sequence[int]], Tensor] | None = None,
    ) -> None:
        """Take the parts.

        `one_by_one` makes a row's bits independent of what else is computed with it; `conditions`
        gives what `source` takes for labels, on the device, where that is not themselves.
        """
        self._source = source
        self._conditions = conditions
        self._one_by_one = one_by_one
        self._device = device
        self._slab = torch.zeros(num_rows, source.row_values, device=device, dtype=dtype)
        self._slots: OrderedDict[Key, int] = OrderedDict()
        self._free = list(range(num_rows))
        self.hits = self.misses = 0

    @property
    def num_bytes(self) -> int:
        """Memory of the slab."""
        return self._slab.nbytes

    def rows(self, keys: Sequence[Key]) -> Tensor:
        """Rows of the given keys (all different), in their order: [R, M].

        A step with more keys than the slab has rows computes them all and keeps none.
        """
        if len(keys) > self._slab.shape[0]:
            self.misses += len(keys)
            return self._compute(keys)
        missing = [key for key in keys if key not in self._slots]
        self.hits += len(keys) - len(missing)
        self.misses += len(missing)
        for key in keys:
            if key in self._slots:
                self._slots.move_to_end(key)
        if missing:
            self._store(missing, self._compute(missing))
        wanted = upload(torch.tensor([self._slots[key] for key in keys]), self._device)
        return self._slab.index_select(0, wanted)

    def _store(self, keys: Sequence[Key], rows_RM: Tensor) -> None:
        """Put rows in free slots, freeing the longest unused; known only once they are written."""
        while len(self._free) < len(keys):
            self._free.append(self._slots.popitem(last=False)[1])
        slots = self._free[: len(keys)]
        self._slab.index_copy_(0, upload(torch.tensor(slots), self._device), rows_RM)
        del self._free[: len(keys)]
        self._slots.update(zip(keys, slots, strict=True))

    def _compute(self, keys: Sequence[Key]) -> Tensor:
        timestep_R = upload(torch.tensor([key[0] for key in keys]), self._device)
        labels = [key[1] for key in keys]
        if self._conditions is None:
            label_R = upload(torch.tensor(labels), self._device)
        else:
            label_R = self._conditions(labels)
        if self._one_by_one:
            return rows_one_by_one(self._source, timestep_R, label_R)
        return self._source.rows(timestep_R, label_R)
