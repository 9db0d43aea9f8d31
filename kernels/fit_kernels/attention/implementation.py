"""What an implementation of attention must be able to say and do.

Knows no implementation; `fit_kernels.attention.choice` does.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

HALF_DTYPES = (torch.float16, torch.bfloat16)
_OLDEST_FLASH = 8  # first number of the compute capability: Ampere
# What a compiled extension raises on import when it was built for another torch, CUDA or device.
_IMPORT_FAILURES = (ImportError, OSError, RuntimeError, AttributeError)
Runs = Sequence[tuple[int, int, int]]


class Implementation(Protocol):
    """One way to compute attention inside each sequence of a pack.

    Attributes:
        captures: whether a captured CUDA graph of it may be replayed with other lengths: it takes
            them from `cu_seqlens` on the device, never from `runs`, and `max_length` as a bound.
    """

    @property
    def captures(self) -> bool:
        """See the class."""
        ...

    def missing(self) -> str | None:
        """Why it cannot be loaded here; None if it can."""
        ...

    def refusal(self, dtype: torch.dtype, device: torch.device, head_dim: int) -> str | None:
        """Which of the values it does not take, and what it takes; None if it takes them."""
        ...

    def attend(
        self,
        q_THE: Tensor,
        k_TGE: Tensor,
        v_TGE: Tensor,
        cu_seqlens: Tensor,
        runs: Runs,
        max_length: int,
        scale: float | None,
    ) -> Tensor:
        """See `fit_kernels.attention_varlen`."""
        ...


def package_missing(module: str, package: str) -> str | None:
    """Say that a module is not installed, and which package has it, or that it does not load."""
    if find_spec(module.partition(".")[0]) is None:
        return f"{package} is not installed"
    failure = _import_failure(module)
    if isinstance(failure, ModuleNotFoundError) and failure.name in _with_parents(module):
        return f"{package} is not installed"
    if failure is None:
        return None
    return f"{package} is installed but does not load: {type(failure).__name__}: {failure}"


@functools.cache
def _import_failure(module: str) -> Exception | None:
    try:
        importlib.import_module(module)
    except _IMPORT_FAILURES as error:
        return error
    return None


def _with_parents(module: str) -> tuple[str, ...]:
    return tuple(accumulate(module.split("."), "{}.{}".format))


def flash_refusal(
    dtype: torch.dtype, device: torch.device, head_dim: int, widest: int = 256
) -> str | None:
    """What every FlashAttention takes: Ampere or later, half precision, head dims in steps of 8."""
    if device.type != "cuda":
        return f"device is {device.type}; it must be cuda"
    if dtype not in HALF_DTYPES:
        return f"dtype is {dtype}; it must be float16 or bfloat16"
    if head_dim % 8 or head_dim > widest:
        return f"head_dim is {head_dim}; it must be a multiple of 8, at most {widest}"
    major = torch.cuda.get_device_capability(device)[0]
    if major < _OLDEST_FLASH:
        return f"device is sm_{major}x; it must be sm_{_OLDEST_FLASH}x or later"
    return None


def with_query_heads(k_TGE: Tensor, num_heads: int) -> Tensor:
    """Repeat key or value heads until every query head has one."""
    return k_TGE.repeat_interleave(num_heads // k_TGE.shape[1], dim=1)
