"""Where a model runs and in what precision, when "auto" is asked for."""

from __future__ import annotations

import torch

# Largest error of an fp32 product of 256 terms of size 1 that still counts as fp32.
_FLOAT32_ERROR = 1e-4
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
    """The dtype meant: "auto" takes float32 on a CPU, bfloat16 on a GPU.

    Raises:
        ValueError: the name is unknown.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is unknown; known: auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]


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
