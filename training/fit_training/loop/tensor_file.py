"""The safetensors format, written tensor by tensor: no second copy of the state in memory.

Knows the layout: eight bytes of header length, a JSON header, the data. Knows nothing of what the
tensors are, and neither syncs files nor reads their data (`safetensors` does).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_ALIGNMENT = 8
_ABOUT = "__metadata__"
_DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.complex64: "C64",
}


def write_tensors(
    tensors: Mapping[str, Tensor],
    write: Callable[[bytes | memoryview], Any],
    about: Mapping[str, str] | None = None,
) -> None:
    """Hand the bytes of a safetensors file to `write`, piece by piece, from any device.

    Layout in memory is not kept: what is read back is contiguous, and shares nothing. `about` goes
    into the header.

    Raises:
        ValueError: a tensor has a dtype the format does not know.
    """
    # Wide types first, as the format's own writer does it: then each begins where it is aligned.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {_ABOUT: {"format": "pt", **(about or {})}}
    end = 0
    for name in names:
        tensor = tensors[name]
        if tensor.dtype not in _DTYPES:
            raise ValueError(f"tensor {name} is of {tensor.dtype}, which cannot be saved")
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    write(len(text).to_bytes(8, "little"))
    write(text)
    for name in names:
        flat = tensors[name].detach().cpu().contiguous().reshape(-1)
        if len(flat):
            write(flat.view(torch.uint8).numpy().data)


def read_forms(path: Path) -> tuple[dict[str, str], dict[str, tuple[torch.Size, torch.dtype]]]:
    """Read the header of a safetensors file.

    Returns:
        what it says about the file, and shape and dtype of every tensor, by name.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is none of safetensors.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            raise ValueError(f"{path} is no safetensors file")
        header = json.loads(file.read(length))
    about = header.pop(_ABOUT, {})
    dtypes = {name: dtype for dtype, name in _DTYPES.items()}
    forms = {k: (torch.Size(v["shape"]), dtypes[v["dtype"]]) for k, v in header.items()}
    return about, forms
