"""Averaged weights: what is served is not the last step but the average of many."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class AveragedWeights:
    """Exponential moving average of a network's state dict, in fp32."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self.weights: dict[str, Tensor] = {
            k: v.detach().float().clone() for k, v in network.state_dict().items()
        }

    def restore(self, weights: Mapping[str, Tensor], num_updates: int) -> None:
        """Take over averages saved earlier, wherever they lie now; names must be the network's."""
        assert weights.keys() == self.weights.keys()
        for name, saved in weights.items():
            self.weights[name].copy_(saved)
        self.num_updates = num_updates

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move towards the network; early on faster, so that the start is forgotten."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        current = network.state_dict()
        targets = [_own(current[k]).float() for k in self.weights]
        averages = [_own(average) for average in self.weights.values()]
        torch._foreach_lerp_(averages, targets, 1.0 - decay)  # pyright: ignore[reportPrivateImportUsage]


def _own(weight: Tensor) -> Tensor:
    """This process's slice, where weights lie in slices."""
    return weight.to_local() if isinstance(weight, DTensor) else weight
