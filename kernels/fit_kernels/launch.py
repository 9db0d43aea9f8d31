"""The one place where Triton kernels are launched, so that every launch can also be written down.

A launch is a kernel, a grid, its arguments and its compile-time constants. While `recorded` is
active nothing runs: launches are collected instead, and arguments may be tensors on the meta
device. That is how ahead-of-time compilation learns every configuration from the code that runs.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Triton's default will change (3.9 says so); both give results within tolerance, this one is fast.
_FP_FUSION = True
FUSED_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Launch:
    """One launch, written down.

    Attributes:
        kernel: the `triton.jit` function.
        grid: programs along each axis.
        arguments: positional arguments: tensors, None, or plain numbers.
        constants: compile-time constants by name.
        num_warps, num_stages: how it is compiled.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    constants: dict[str, Any]
    num_warps: int
    num_stages: int


_records: list[list[Launch]] = []


def interpreting() -> bool:
    """Whether Triton kernels run in its interpreter, on the CPU (`TRITON_INTERPRET=1`)."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Collect launches instead of running them."""
    launches: list[Launch] = []
    _records.append(launches)
    try:
        yield launches
    finally:
        _records.pop()


def compile_options(num_warps: int, num_stages: int) -> dict[str, Any]:
    """Options of Triton's compiler, the same whether it runs at a launch or ahead of it."""
    return {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": _FP_FUSION}


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    *arguments: Any,
    num_warps: int,
    num_stages: int = 1,
    **constants: Any,
) -> None:
    """Run a kernel on the device of its first tensor; an empty grid runs nothing."""
    if 0 in grid:
        return
    if _records:
        record = Launch(kernel, grid, arguments, constants, num_warps, num_stages)
        _records[-1].append(record)
        return
    options = {**compile_options(num_warps, num_stages), **constants}
    first = next(a for a in arguments if isinstance(a, Tensor))
    if first.is_cuda:
        with torch.cuda.device(first.device):
            kernel[grid](*arguments, **options)
    else:
        kernel[grid](*arguments, **options)


def check_dtype(operator: str, *tensors: Tensor | None) -> None:
    """Refuse dtypes the kernels have no arithmetic for.

    Raises:
        ValueError: a tensor is of another dtype.
    """
    for tensor in tensors:
        if tensor is not None and tensor.dtype not in FUSED_DTYPES:
            known = ", ".join(str(d).removeprefix("torch.") for d in FUSED_DTYPES)
            raise ValueError(f"{operator}: dtype is {tensor.dtype}; fused operators take {known}")


def unit_stride(x: Tensor) -> Tensor:
    """The tensor with its last dimension contiguous: itself, where it is already."""
    return x if x.stride(-1) == 1 else x.contiguous()


def stride_unit(*strides: int) -> int:
    """The largest power of two, up to 8, that divides every stride.

    The compiler learns of a stride only whether 16 divides it, and 72 is not such: passed in units
    of 8, a constant, 16-byte loads stay 16-byte loads.
    """
    return math.gcd(8, *strides)


def two_pieces(size: int, smallest: int = 1) -> tuple[int, int]:
    """Cover `size` by two powers of two, the larger first.

    A row of 1152 is 1024 + 128 with no lane idle, where one block of 2048 would idle 44 %.
    """
    larger = smallest
    while larger * 2 < size:
        larger *= 2
    smaller = smallest
    while larger + smaller < size:
        smaller *= 2
    return larger, smaller
