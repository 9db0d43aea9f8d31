"""The fused operators at the shapes of a network, and the bytes each must move.

Bytes are counted from tensors, every one read or written once: what an ideal kernel moves. Knows
shapes; not backends, devices' speed or clocks.

Dimension key: T packed tokens, R modulation rows, S sequences, D width, F MLP width, H heads,
E head dim, P rows of the rotary slab, K channels of a token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import fit_kernels
from fit_models.config import ModelConfig

# What a row of the modulation table holds besides this operator's vectors: rows lie far apart.
_TABLE_VECTORS = 6
_TOKENS_PER_SEQUENCE = 256


@dataclass(frozen=True)
class Shape:
    """So many tokens of a network."""

    tokens: int
    config: ModelConfig

    @property
    def sequences(self) -> int:
        """Pictures of 256 tokens, as many as fit, and one at least."""
        return max(1, self.tokens // _TOKENS_PER_SEQUENCE)


@dataclass
class Inputs:
    """Arguments of one call.

    Attributes:
        tensors: positional arguments by name, in order; None where an optional one is left out.
        options: keyword arguments.
        differentiable: names of those that get a gradient.
        unread: bytes of the arguments that the forward has no need to read.
        unread_backward: bytes that the backward has no need to read.
    """

    tensors: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    differentiable: tuple[str, ...] = ()
    unread: int = 0
    unread_backward: int = 0


Make = Callable[[Shape, torch.dtype, torch.device], Inputs]


def _layer_norm_modulate(shape: Shape, dtype: torch.dtype, device: torch.device) -> Inputs:
    shift_RD, scale_RD = _rows(shape, 2, dtype, device)
    tensors = {
        "x": _tokens(shape, dtype, device),
        "shift": shift_RD,
        "scale": scale_RD,
        "row": _row_of_token(shape, device),
    }
    return Inputs(tensors, {}, ("x", "shift", "scale"), unread_backward=shift_RD.nbytes)


def _gated_residual_layer_norm_modulate(
    shape: Shape, dtype: torch.dtype, device: torch.device
) -> Inputs:
    gate_RD, shift_RD, scale_RD = _rows(shape, 3, dtype, device)
    tensors = {
        "x": _tokens(shape, dtype, device),
        "y": _tokens(shape, dtype, device),
        "gate": gate_RD,
        "shift": shift_RD,
        "scale": scale_RD,
        "row": _row_of_token(shape, device),
    }
    # The backward reads the gated sum in the place of x.
    wanted = ("x", "y", "gate", "shift", "scale")
    return Inputs(tensors, {}, wanted, unread_backward=shift_RD.nbytes)


def _qk_norm_rope(shape: Shape, dtype: torch.dtype, device: torch.device) -> Inputs:
    heads, head_dim = shape.config.num_heads, shape.config.head_dim
    slab = min(shape.tokens, 4 * _TOKENS_PER_SEQUENCE)
    angle_PE2 = torch.rand(slab, head_dim // 2, device=device) * 6
    qkv = torch.randn(shape.tokens, 3 * heads, head_dim, device=device, dtype=dtype)
    tensors = {
        "qkv": qkv,
        "cos": angle_PE2.cos(),
        "sin": angle_PE2.sin(),
        "rope_row": torch.arange(shape.tokens, device=device) % slab,
    }
    # Values pass through as a view; their gradient is only copied.
    values = qkv.nbytes // 3
    options = {"num_heads": heads, "norm": "layer"}
    return Inputs(tensors, options, ("qkv",), unread=values, unread_backward=values)


def _swiglu(shape: Shape, dtype: torch.dtype, device: torch.device) -> Inputs:
    size = (shape.tokens, 2 * shape.config.mlp_hidden)
    return Inputs({"gate_up": torch.randn(size, device=device, dtype=dtype)}, {}, ("gate_up",))


def _guided_step(shape: Shape, dtype: torch.dtype, device: torch.device) -> Inputs:
    """Half of the tokens are the unconditional branches of the other half."""
    states, channels = max(1, shape.tokens // 2), shape.config.token_channels
    state, memory, noise = (torch.randn(states, channels, device=device) for _ in range(3))
    sequences = max(1, shape.sequences // 2)
    each = -(-states // sequences)
    index = torch.arange(states, device=device)
    tensors = {
        "x": state,
        "velocity": torch.randn(2 * states, channels, device=device, dtype=dtype),
        "memory": memory,
        "noise": noise,
        "conditional": index,
        "unconditional": index + states,
        "rows": torch.randn(sequences, 8, device=device),
        "sequence": index // each,
        "guided_channels": shape.config.guided_token_channels,
    }
    # The step is linear: its gradient needs the rows, and none of what it moved.
    wanted = ("x", "velocity", "memory", "noise")
    return Inputs(tensors, {}, wanted, unread_backward=sum(tensors[n].nbytes for n in wanted))


OPERATORS: dict[str, Make] = {
    "layer_norm_modulate": _layer_norm_modulate,
    "gated_residual_layer_norm_modulate": _gated_residual_layer_norm_modulate,
    "qk_norm_rope": _qk_norm_rope,
    "swiglu": _swiglu,
    "guided_step": _guided_step,
}


def run_forward(operator: str, inputs: Inputs) -> tuple[Tensor, ...]:
    """The operator under the current backend; always a tuple."""
    out = getattr(fit_kernels, operator)(*inputs.tensors.values(), **inputs.options)
    return out if isinstance(out, tuple) else (out,)


def require_gradients(inputs: Inputs) -> list[Tensor]:
    """Mark the differentiable arguments, and return them."""
    wanted = [inputs.tensors[name] for name in inputs.differentiable]
    return [tensor.requires_grad_() for tensor in wanted]


def bytes_of(operator: str, shape: Shape, dtype: torch.dtype, backward: bool) -> int:
    """Bytes that a call must move, every tensor once; gradients of all outputs for a backward."""
    inputs = OPERATORS[operator](shape, dtype, torch.device("meta"))
    tensors = [t for t in inputs.tensors.values() if isinstance(t, Tensor)]
    with torch.no_grad():
        outputs = run_forward(operator, inputs)
    storages = {t.untyped_storage()._cdata for t in tensors}
    made = sum(t.nbytes for t in outputs if t.untyped_storage()._cdata not in storages)
    read = sum(t.nbytes for t in tensors)
    if not backward:
        return read - inputs.unread + made
    incoming = sum(t.nbytes for t in outputs)
    outgoing = sum(inputs.tensors[name].nbytes for name in inputs.differentiable)
    return read - inputs.unread_backward + incoming + outgoing


def _tokens(shape: Shape, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.randn(shape.tokens, shape.config.hidden_size, device=device, dtype=dtype)


def _rows(shape: Shape, count: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Views into one wide table, as a network's modulation is."""
    width = shape.config.hidden_size
    table = torch.randn(shape.sequences, _TABLE_VECTORS * width, device=device, dtype=dtype)
    table *= 0.1
    return tuple(table[:, i * width : (i + 1) * width] for i in range(count))


def _row_of_token(shape: Shape, device: torch.device) -> Tensor:
    each = -(-shape.tokens // shape.sequences)
    return torch.arange(shape.tokens, device=device) // each
