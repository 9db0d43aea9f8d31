"""Which product of a CPU multiplies by ternary weights: decided once, explicit, never at import.

`native` is C that the machine's own compiler builds at first use. `tiles` is PyTorch that unpacks a
few rows at a time. `reference` unpacks the whole weight, as the authors' code does. `auto` takes
`native` where it can be built and `tiles` elsewhere, and logs what and why.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from fit_kernels import reference
from fit_kernels.ternary.native import native_product, obstacle_to_native
from fit_kernels.ternary.tiles import product_by_tiles

TERNARY_PRODUCTS = ("native", "tiles", "reference")
_PRODUCTS = {
    "native": native_product,
    "tiles": product_by_tiles,
    "reference": reference.ternary_linear,
}
_current: list[str | None] = [None]
_log = logging.getLogger(__name__)


def use_ternary(name: str) -> None:
    """Choose the product from now on, in this process.

    Args:
        name: of `TERNARY_PRODUCTS`, or "auto".

    Raises:
        ValueError: the name is unknown, or `native` cannot be built; the message says why.
    """
    if name == "auto":
        obstacle = obstacle_to_native()
        name = "tiles" if obstacle else "native"
        _log.info("ternary products: %s (%s)", name, obstacle or "a C compiler is there")
    elif name not in TERNARY_PRODUCTS:
        raise ValueError(
            f"ternary product {name!r} is unknown; known: auto, {', '.join(TERNARY_PRODUCTS)}"
        )
    elif name == "native" and (obstacle := obstacle_to_native()):
        raise ValueError(f"ternary product 'native' cannot run: {obstacle}")
    _current[0] = name


def current_ternary() -> str:
    """The name of the product in use; the first question decides as `auto` does."""
    if _current[0] is None:
        use_ternary("auto")
    assert _current[0] is not None
    return _current[0]


def product_on_cpu(
    x_TD: Tensor, packed_QD: Tensor, alpha_1: Tensor, bias_F: Tensor | None
) -> Tensor:
    """`fit_kernels.reference.ternary_linear` by the chosen product, its sums in fp32 or wider."""
    if x_TD.dtype == torch.float64:
        return reference.ternary_linear(x_TD, packed_QD, alpha_1, bias_F)
    bias = None if bias_F is None else bias_F.float()
    out_TF = _PRODUCTS[current_ternary()](x_TD.float(), packed_QD, alpha_1.float(), bias)
    return out_TF.to(x_TD.dtype)
