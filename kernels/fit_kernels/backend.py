"""Which implementation of the operators runs: decided once, explicit, never at import.

`reference` is plain PyTorch. `compiled` is the same text through `torch.compile`, which fuses the
elementwise chains; it pays in long runs (training) and costs a compiler's wait at the start.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from fit_kernels import reference

BACKENDS = ("reference", "compiled")
_current = ["reference"]


def use_backend(name: str) -> None:
    """Choose the implementation of every operator from now on, in this process.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in BACKENDS:
        raise ValueError(f"operator backend {name!r} is unknown; known: {', '.join(BACKENDS)}")
    _current[0] = name


def current_backend() -> str:
    """The name of the implementation in use."""
    return _current[0]


def implementation(operator: str) -> Callable[..., Any]:
    """The function that runs an operator under the current backend."""
    if _current[0] == "compiled":
        return _compiled(operator)
    return getattr(reference, operator)


@functools.cache
def _compiled(operator: str) -> Callable[..., Any]:
    return torch.compile(getattr(reference, operator), dynamic=True)
