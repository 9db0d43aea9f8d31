"""Where a model runs and in what precision, when "auto" is asked for."""

from __future__ import annotations

import functools
import logging
import time

import torch
from torch import Tensor
from torch.nn import functional as F

_log = logging.getLogger(__name__)

# Largest error of an fp32 product of 256 terms of size 1 that still counts as fp32.
_FLOAT32_ERROR = 1e-4
# What bf16 is judged by on a CPU: rows, inputs and outputs of a product, how often it is timed, and
# the share of fp32's time it may take: what is no product gains nothing, so half is not needed but
# a little less would not pay for the coarser numbers.
_JUDGED_PRODUCT = (256, 768, 2304)
_JUDGED_ROUNDS = 5
_BFLOAT16_SHARE = 0.75
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def resolve_device(device: torch.device | str) -> torch.device:
    """The device meant: "auto" takes a GPU if there is one.

    Raises:
        ValueError: a GPU is asked for and there is none.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is 'cuda', but torch finds no GPU here")
    return device


def resolve_dtype(dtype: torch.dtype | str, device: torch.device) -> torch.dtype:
    """The dtype meant: "auto" takes bfloat16 on a GPU, and on a CPU that is faster with it.

    Raises:
        ValueError: the name is unknown.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        if device.type == "cpu" and not prefers_bfloat16():
            return torch.float32
        return torch.bfloat16
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is unknown; known: auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Put a host tensor on the device without waiting for what the device is doing."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


@functools.cache
def prefers_bfloat16() -> bool:
    """Whether this CPU multiplies bf16 matrices in at most three quarters of the time of fp32.

    Measured once in a process, in some tens of milliseconds; fp32 takes its fast path for it.
    """
    if not _has_bfloat16_products():
        return False
    before = torch.get_float32_matmul_precision()
    use_fast_float32_matmul()
    try:
        rows, inputs, outputs = _JUDGED_PRODUCT
        best = dict.fromkeys(DTYPES.values(), float("inf"))
        x, weight = torch.ones(rows, inputs), torch.ones(outputs, inputs)
        arguments = {dtype: (x.to(dtype), weight.to(dtype)) for dtype in best}
        for _ in range(_JUDGED_ROUNDS):
            for dtype in best:
                started = time.perf_counter()
                F.linear(*arguments[dtype])
                best[dtype] = min(best[dtype], time.perf_counter() - started)
    finally:
        torch.set_float32_matmul_precision(before)
    share = best[torch.bfloat16] / best[torch.float32]
    _log.info("a bfloat16 product takes %.2f of the time of a float32 one on this CPU", share)
    return share <= _BFLOAT16_SHARE


def _has_bfloat16_products() -> bool:
    """Whether oneDNN has them; without it torch's own take a hundred times as long."""
    try:
        return torch.backends.mkldnn.is_available() and bool(
            torch.ops.mkldnn._is_mkldnn_bf16_supported()
        )
    except (AttributeError, RuntimeError):
        return False


def use_fast_float32_matmul() -> bool:
    """Let fp32 matrix products on a CPU take the vendor-neutral path, where it stays exact.

    On CPUs that the default library treats as strangers this doubles their speed. The same switch
    may round to bf16 on CPUs with matrix units for it, so the error is measured and the switch
    taken back if it is not fp32's.

    Returns:
        whether the fast path is in use, process-wide.
    """
    before = torch.get_float32_matmul_precision()
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 256, 256, generator=generator)
    exact = a.double() @ b.double()
    torch.set_float32_matmul_precision("medium")
    if float(((a @ b).double() - exact).abs().max()) <= _FLOAT32_ERROR:
        return True
    torch.set_float32_matmul_precision(before)
    return False
