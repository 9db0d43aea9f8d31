"""Norms without weights, of whole tokens and of heads: LayerNorm, RMSNorm or none.

Knows rows of values; not what is done with them. Dimension key: T tokens, J heads, E head dim.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

NORMS = ("layer", "rms", "none")


def normalised(x: Tensor, eps: float, norm: str) -> Tensor:
    """Each row of the last dim over its deviation: LayerNorm or RMSNorm, neither with weights.

    Args:
        x: any shape; statistics are taken in fp32 whatever the dtype.
        eps: added to the (biased) variance, or to the mean square.
        norm: "layer" (arXiv:1607.06450), "rms" (arXiv:1910.07467) or "none".

    Raises:
        ValueError: the norm is unknown.
    """
    width = (x.shape[-1],)
    match norm:
        case "layer":
            return F.layer_norm(x, width, eps=eps)
        case "rms":
            return F.rms_norm(x, width, eps=eps)
        case "none":
            return x
    raise ValueError(unknown_norm(norm))


def normalised_heads(x_TJE: Tensor, eps: float, norm: str) -> Tensor:
    """`normalised` of many short rows; the result may be wider than what was given.

    On a CPU PyTorch's own norms cost as much for a row of 64 as for one of several hundred: there
    the same formula in fp32, over whole tensors, takes two fifths of their time.

    Args:
        x_TJE: queries and keys; need not be contiguous.
        eps, norm: see `normalised`.

    Raises:
        ValueError: the norm is unknown.
    """
    has_gradient = torch.is_grad_enabled() and x_TJE.requires_grad
    if (
        norm not in ("layer", "rms")
        or x_TJE.device.type != "cpu"
        or has_gradient
        or torch.compiler.is_compiling()
    ):
        return normalised(x_TJE, eps, norm)
    wide_TJE = x_TJE.to(torch.promote_types(x_TJE.dtype, torch.float32))
    if norm == "layer":
        wide_TJE = wide_TJE - wide_TJE.mean(-1, keepdim=True)
    deviation_TJ1 = torch.linalg.vector_norm(wide_TJE, dim=-1, keepdim=True)
    return wide_TJE * deviation_TJ1.square_().div_(x_TJE.shape[-1]).add_(eps).rsqrt_()


def unknown_norm(norm: str) -> str:
    """Say that there is no such norm, and which there are."""
    return f"norm {norm!r} is unknown; known: {', '.join(NORMS)}"
