"""Which implementation of the operators runs: decided once, explicit, never at import.

`reference` is plain PyTorch. `compiled` is the same text through `torch.compile`, which fuses the
elementwise chains; it pays in long runs (training) and costs a compiler's wait at the start.
`fused` are our Triton kernels, on a CUDA device, or anywhere under Triton's interpreter. `auto`
takes `fused` where they can run and `reference` elsewhere, and logs what and why.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch

from fit_kernels import reference
from fit_kernels.launch import interpreting

BACKENDS = ("reference", "compiled", "fused")
_current = ["reference"]
_log = logging.getLogger(__name__)


def use_backend(name: str, device: torch.device | str = "cpu") -> None:
    """Choose the implementation of every operator from now on, in this process.

    Args:
        name: of `BACKENDS`, or "auto".
        device: where the operators will run; what `auto` depends on.

    Raises:
        ValueError: the name is unknown, or `fused` cannot run here; the message says why.
    """
    if name == "auto":
        obstacle = obstacle_to_fused(torch.device(device))
        name = "reference" if obstacle else "fused"
        _log.info("operators: %s (%s)", name, obstacle or "a CUDA device and Triton are there")
    elif name not in BACKENDS:
        raise ValueError(
            f"operator backend {name!r} is unknown; known: auto, {', '.join(BACKENDS)}"
        )
    elif name == "fused" and (obstacle := obstacle_to_fused(torch.device(device))):
        raise ValueError(f"operator backend 'fused' cannot run: {obstacle}")
    _current[0] = name


def current_backend() -> str:
    """The name of the implementation in use."""
    return _current[0]


def implementation(operator: str) -> Callable[..., Any]:
    """The function that runs an operator under the current backend."""
    match _current[0]:
        case "compiled":
            return _compiled(operator)
        case "fused":
            return _registered(operator)
    return getattr(reference, operator)


def obstacle_to_fused(device: torch.device) -> str | None:
    """Why Triton kernels cannot run on a device; None if they can."""
    if find_spec("triton") is None:
        return "Triton is not installed (pip install 'fit-serve[gpu]')"
    if interpreting():
        return None
    if device.type != "cuda":
        return f"they need a CUDA device, and the device is {device.type}"
    return None if torch.cuda.is_available() else "torch finds no CUDA device"


@functools.cache
def _compiled(operator: str) -> Callable[..., Any]:
    return torch.compile(getattr(reference, operator), dynamic=True)


@functools.cache
def _registered(operator: str) -> Callable[..., Any]:
    from fit_kernels import registered  # registers the operators with torch; nobody else needs it

    return getattr(registered, operator)
