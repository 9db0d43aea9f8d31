"""Linear layers of ternary weights, to serve and to train, under the names of TerDiT's files.

Both hold `weight`, `alphas` and, where the layer has one, `bias`. `TernaryLinear` keeps two bits a
weight and takes the packed files and the float ones; `FakeTernaryLinear` keeps floats and makes
them ternary in every pass (arXiv:2405.14854, section 3).

Dimension key: T packed tokens, D width, F features, Q = F / 4 rows of bytes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fit_kernels import ternary_linear
from fit_kernels.ternary_weights import (
    VALUES_PER_BYTE,
    check_packed,
    pack_ternary,
    ternarised,
)


class TernaryLinear(nn.Module):
    """A linear layer with packed weights; for inference only.

    A float weight that a state dict brings is made ternary and packed as it is loaded.
    """

    weight: Tensor
    alphas: Tensor
    bias: nn.Parameter | None

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__()
        if out_features % VALUES_PER_BYTE:
            raise ValueError(f"a ternary layer has {out_features} outputs; not a multiple of 4")
        self.in_features, self.out_features = in_features, out_features
        # 0x55 is four zeros: a layer that nobody loads is no layer of another file's weights.
        packed_QD = torch.full((out_features // VALUES_PER_BYTE, in_features), 0x55)
        self.register_buffer("weight", packed_QD.to(torch.uint8))
        self.register_buffer("alphas", torch.ones(1))
        parameter = nn.Parameter(torch.zeros(out_features)) if bias else None
        self.register_parameter("bias", parameter)

    def forward(self, x_TD: Tensor) -> Tensor:
        """[T, D] -> [T, F]."""
        return ternary_linear(x_TD, self.weight, self.alphas, self.bias)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Pack a float weight first; one layer at a time, so that floats do not add up.

        Raises:
            ValueError: packed bytes hold something else than ternary values, or were made floats.
        """
        key = f"{prefix}weight"
        given = state_dict.get(key)
        if isinstance(given, Tensor) and given.dtype == torch.uint8:
            check_packed(key, given)
        elif isinstance(given, Tensor) and given.shape == (self.out_features, self.in_features):
            state_dict[key] = pack_ternary(ternarised(given.float()))
        elif isinstance(given, Tensor) and given.shape == self.weight.shape:
            raise ValueError(
                f"{key} is {given.dtype} in the shape of packed weights; these are uint8, which no "
                "conversion of dtypes may touch"
            )
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


class FakeTernaryLinear(nn.Module):
    """The layer as it is trained: float weights, ternary in the product.

    The gradient passes the rounding as if it were not there (straight-through,
    arXiv:1308.3432), clipped weights too.
    """

    bias: nn.Parameter | None

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        nn.init.xavier_uniform_(self.weight)
        self.alphas = nn.Parameter(torch.randn(1))
        parameter = nn.Parameter(torch.zeros(out_features)) if bias else None
        self.register_parameter("bias", parameter)

    def forward(self, x_TD: Tensor) -> Tensor:
        """[T, D] -> [T, F]."""
        return F.linear(x_TD, self.alphas * _StraightThrough.apply(self.weight), self.bias)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight_FD: Tensor) -> Tensor:
        return ternarised(weight_FD)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        return grad_outputs[0]
