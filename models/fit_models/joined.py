"""Weights laid out for serving: projections of the same input become one, once, after loading.

A network file keeps the names of the released checkpoints; here its modules are replaced by ones
that compute the same with fewer, larger products, and still give their weights under those names.
For inference only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fit_kernels import swiglu
from fit_models.layers import SwiGLU

# On a CPU, longer inputs are worked off in parts whose projection stays in the cache; shorter ones
# gain nothing (benchmarks/results/LOG.md).
_CACHED_TOKENS, _PART_TOKENS = 2048, 512


class JoinedSwiGLU(nn.Module):
    """The gated MLP with gate and up projection as one: `fc1` holds the gate's rows first."""

    def __init__(self, mlp: SwiGLU) -> None:
        super().__init__()
        gate, up = mlp.fc1_g, mlp.fc1_x
        with torch.device("meta"):
            self.fc1 = nn.Linear(gate.in_features, gate.out_features + up.out_features)
        self.fc1.weight = _frozen(torch.cat((gate.weight, up.weight)))
        self.fc1.bias = _frozen(torch.cat((gate.bias, up.bias)))
        self.fc2 = mlp.fc2
        self.register_state_dict_post_hook(_name_as_released)

    def forward(self, x_TD: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        if x_TD.device.type == "cpu" and len(x_TD) > _CACHED_TOKENS:
            parts = x_TD.split(_PART_TOKENS)
            return torch.cat([self.fc2(swiglu(self.fc1(part))) for part in parts])
        return self.fc2(swiglu(self.fc1(x_TD)))


def join_projections(network: nn.Module) -> None:
    """Replace the gated MLP of every block, one after another: one MLP is held twice at most."""
    for module in network.modules():
        if isinstance(mlp := getattr(module, "mlp", None), SwiGLU):
            module.set_submodule("mlp", JoinedSwiGLU(mlp).train(module.training))


def _name_as_released(_mlp: nn.Module, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    for kind in ("weight", "bias"):
        gate, up = state.pop(f"{prefix}fc1.{kind}").chunk(2)
        state |= {f"{prefix}fc1_g.{kind}": gate, f"{prefix}fc1_x.{kind}": up}


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach(), requires_grad=False)
