"""Weights laid out for a CPU: in the order oneDNN's products read them, once, after loading.

A product from plain weights brings them into that order every time. The gated MLP gains more: its
activation and its gating are done while the products' results are still in registers, and rounded
once less. State-dict names stay those of the released checkpoints. For inference on a CPU only;
what oneDNN does not take here is laid out by `fit_models.joined`.

Dimension key: T packed tokens, I inputs, O outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fit_models.joined import join_projections
from fit_models.layers import Block, SwiGLU

_DTYPES = (torch.float32, torch.bfloat16)
# Tokens the order is chosen for; it serves 100 to 4,000 as well (benchmarks/results/LOG.md).
_TYPICAL_TOKENS = 512

# The compiler's own lowering takes no weight that is laid out already.
_outside: Any = torch.compiler.disable


class PrepackedLinear(nn.Module):
    """A linear layer that holds its weight in oneDNN's order, and gives it in its own."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        packed = torch.ops.mkldnn._reorder_linear_weight(
            linear.weight.detach().contiguous(), _TYPICAL_TOKENS
        )
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.bias = linear.bias
        self.register_state_dict_post_hook(_unpack_weight)

    def forward(self, x_TI: Tensor) -> Tensor:
        """[T, I] -> [T, O]."""
        return self.activated(x_TI, "none")

    @_outside
    def activated(self, x_TI: Tensor, activation: str) -> Tensor:
        """The product, then "none" or "swish": [T, I] -> [T, O]."""
        return torch.ops.mkldnn._linear_pointwise(x_TI, self.weight, self.bias, activation, [], "")

    @_outside
    def times(self, x_TI: Tensor, factor_TO: Tensor) -> Tensor:
        """The product times a factor for each of its values: [T, I] -> [T, O]."""
        return torch.ops.mkldnn._linear_pointwise.binary(
            x_TI, factor_TO, self.weight, self.bias, "mul"
        )

    def plain_weight(self) -> Tensor:
        """The weight [O, I] as it was given."""
        return self.weight.to_dense()


class PrepackedSwiGLU(nn.Module):
    """The gated MLP in three products, nothing between them."""

    def __init__(self, mlp: SwiGLU) -> None:
        super().__init__()
        self.fc1_g = PrepackedLinear(mlp.fc1_g)
        self.fc1_x = PrepackedLinear(mlp.fc1_x)
        self.fc2 = PrepackedLinear(mlp.fc2)

    def forward(self, x_TD: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        gate_TF = self.fc1_g.activated(x_TD, "swish")
        return self.fc2(self.fc1_x.times(x_TD, gate_TF))


def lay_out_weights(network: nn.Module) -> None:
    """Lay out the blocks' weights for serving: prepacked where that can be, joined elsewhere.

    Works block by block: one layer is held twice at most.
    """
    for module in network.modules():
        if isinstance(module, Block) and isinstance(module.mlp, SwiGLU):
            qkv, proj = module.attn.qkv, module.attn.proj
            if not _can_prepack(qkv.weight):
                break
            module.set_submodule("attn.qkv", PrepackedLinear(qkv))
            module.set_submodule("attn.proj", PrepackedLinear(proj))
            module.set_submodule("mlp", PrepackedSwiGLU(module.mlp))
    join_projections(network)


def _can_prepack(weight_OI: Tensor) -> bool:
    """Whether oneDNN is there and takes such weights; tried out, for its operators are private."""
    if weight_OI.device.type != "cpu" or weight_OI.dtype not in _DTYPES:
        return False
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        if weight_OI.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        layer = nn.Linear(8, 4, dtype=weight_OI.dtype).requires_grad_(False)
        x_TI = torch.ones(2, 8, dtype=weight_OI.dtype)
        packed = PrepackedLinear(layer)
        packed.times(x_TI, packed.activated(x_TI, "swish"))
        return torch.equal(packed.plain_weight(), layer.weight)
    except (AttributeError, RuntimeError, TypeError):
        return False


def _unpack_weight(
    layer: PrepackedLinear, state: dict[str, Any], prefix: str, _metadata: Any
) -> None:
    state[f"{prefix}weight"] = layer.plain_weight()
