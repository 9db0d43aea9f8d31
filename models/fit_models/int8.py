"""The blocks' products in int8 on a CPU: weights quantized once, tokens anew in each product.

Every output of a weight has a scale of its own, and so has every token (W8A8, dynamic, symmetric:
the scheme of LLM.int8(), arXiv:2208.07339, without its outliers). Sums are exact in int32. Only
qkv, projection and MLP of the blocks change; embeddings, adaLN and the final layer stay. For
inference: weights quantized here are not given back under the released names.

Dimension key: T packed tokens, I inputs, O outputs, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fit_kernels import swiglu
from fit_models.joined import JoinedSwiGLU
from fit_models.layers import Block, SwiGLU
from fit_models.prepacked import PrepackedLinear, PrepackedSwiGLU

_LEVELS = 127
# Below this a token or weight is zero; its scale must not be.
_SMALLEST_SCALE = 1e-12


class Int8Linear(nn.Module):
    """A linear layer in int8 whose result is of the dtype of its input."""

    weight_OI: Tensor
    scale_O: Tensor
    bias_O: Tensor

    def __init__(self, weight_OI: Tensor, bias_O: Tensor) -> None:
        super().__init__()
        wide_OI = weight_OI.detach().float()
        scale_O = (wide_OI.abs().amax(1) / _LEVELS).clamp_(min=_SMALLEST_SCALE)
        quantized_OI = (wide_OI / scale_O[:, None]).round_().to(torch.int8)
        self.register_buffer("weight_OI", quantized_OI)
        self.register_buffer("scale_O", scale_O)
        self.register_buffer("bias_O", bias_O.detach().float())

    def forward(self, x_TI: Tensor) -> Tensor:
        """[T, I] -> [T, O]."""
        scale_T1 = x_TI.abs().amax(1, keepdim=True).float().div_(_LEVELS)
        scale_T1.clamp_(min=_SMALLEST_SCALE)
        wide_TI = x_TI.to(
            torch.float32, copy=True
        )  # a mixed product would take three times as long
        quantized_TI = wide_TI.mul_(scale_T1.reciprocal()).round_().to(torch.int8)
        sum_TO = torch.ops.aten._int_mm(quantized_TI, self.weight_OI.t()).float().mul_(self.scale_O)
        return torch.addcmul(self.bias_O, sum_TO, scale_T1, out=sum_TO).to(x_TI.dtype)


class Int8SwiGLU(nn.Module):
    """The gated MLP in two int8 products: `fc1` holds the gate's rows first."""

    def __init__(self, fc1: Int8Linear, fc2: Int8Linear) -> None:
        super().__init__()
        self.fc1, self.fc2 = fc1, fc2

    def forward(self, x_TD: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        return self.fc2(swiglu(self.fc1(x_TD)))


def quantize_int8(network: nn.Module) -> None:
    """Replace the products of every block, however they were laid out; a second call does nothing.

    Raises:
        ValueError: the network is not on a CPU, or has no blocks of a kind that is known.
    """
    blocks = [module for module in network.modules() if isinstance(module, Block)]
    if not blocks:
        raise ValueError("int8: the network has no blocks whose products could be quantized")
    for block in blocks:
        device = next(block.parameters()).device
        if device.type != "cpu":
            raise ValueError(f"int8: the network is on {device}; int8 products need a CPU")
    for block in blocks:
        if not isinstance(block.mlp, Int8SwiGLU):
            mlp = _quantized_mlp(block.mlp)
            for name in ("attn.qkv", "attn.proj"):
                block.set_submodule(name, _quantized(block.get_submodule(name)))
            block.set_submodule("mlp", mlp)


def _quantized(*layers: nn.Module) -> Int8Linear:
    """One product of several layers of the same input, their outputs side by side."""
    weights, biases = zip(*(_plain(layer) for layer in layers), strict=True)
    return Int8Linear(torch.cat(weights), torch.cat(biases))


def _plain(layer: nn.Module) -> tuple[Tensor, Tensor]:
    if isinstance(layer, PrepackedLinear):
        return layer.plain_weight(), layer.bias
    if isinstance(layer, nn.Linear):
        return layer.weight, layer.bias
    raise ValueError(f"int8: a {type(layer).__name__} cannot be quantized")


def _quantized_mlp(mlp: nn.Module) -> Int8SwiGLU:
    if isinstance(mlp, JoinedSwiGLU):
        return Int8SwiGLU(_quantized(mlp.fc1), _quantized(mlp.fc2))
    if isinstance(mlp, SwiGLU | PrepackedSwiGLU):
        return Int8SwiGLU(_quantized(mlp.fc1_g, mlp.fc1_x), _quantized(mlp.fc2))
    raise ValueError(f"int8: a {type(mlp).__name__} cannot be quantized")
