"""How near to the exact picture a request wants to be, for less work.

What the presets cost in quality is measured in docs/quality.md. Plain values: how a preset is
carried out is the engine's business.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Quality:
    """One preset.

    Attributes:
        computed_share: share of a sequence's evaluations that the network does, for the planned
            rule of the step cache.
        change: relative change of the prediction that may add up before the network is asked
            again, for the rule that watches it.
        lowest_guided_sigma: noise level below which nothing is guided, unless the request says
            its own guidance interval.
    """

    computed_share: float
    change: float
    lowest_guided_sigma: float

    @property
    def reuses(self) -> bool:
        """Whether any evaluation may do without the network."""
        return self.computed_share < 1.0


QUALITIES: Mapping[str, Quality] = MappingProxyType(
    {
        "exact": Quality(1.0, 0.0, 0.0),
        "balanced": Quality(0.65, 0.1, 0.1),
        "fast": Quality(0.45, 0.3, 0.2),
    }
)
EXACT = "exact"
