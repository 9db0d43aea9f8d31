"""What a file of weights is, told by its first bytes; names of released files often lie.

Knows magic numbers; reads no tensors.
"""

from __future__ import annotations

import struct
from enum import Enum
from pathlib import Path

# The longest header that the safetensors library takes.
_LONGEST_HEADER = 100_000_000
_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"
_PICKLE_PROTOCOLS = range(2, 6)
_LOOK = 512


class Container(Enum):
    """Ways in which tensors lie in a file; the value is what people call it."""

    SAFETENSORS = "safetensors"
    TORCH_ZIP = "torch pickle in a zip archive"
    TORCH_LEGACY = "torch pickle of before torch 1.6"

    @property
    def is_pickle(self) -> bool:
        """Whether reading it without care could run code."""
        return self is not Container.SAFETENSORS


def container_of(path: Path) -> Container:
    """Tell what a file is, whatever it is called.

    Raises:
        ValueError: it is none of them, or cut off in its header; the message says what it is.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(_LOOK)
    if start.startswith(_ZIP):
        return Container.TORCH_ZIP
    if start[:1] == _PICKLE and len(start) > 1 and start[1] in _PICKLE_PROTOCOLS:
        return Container.TORCH_LEGACY
    if len(start) > 8 and start[8:9] == b"{":
        (header,) = struct.unpack("<Q", start[:8])
        if header <= _LONGEST_HEADER:
            if header + 8 > size:
                raise ValueError(
                    f"weights: {path} is a safetensors file cut off in its header: "
                    f"{size} of at least {header + 8} bytes"
                )
            return Container.SAFETENSORS
    raise ValueError(f"weights: {path} {_say_what_else(start)}")


def _say_what_else(start: bytes) -> str:
    if not start:
        return "is empty"
    if start.lstrip()[:9].lower() in (b"<!doctype", b"<html>") or start.lstrip()[:5] == b"<html":
        return "is a web page; download the file itself (a link with /resolve/, not /blob/)"
    if start.startswith(b"version https://git-lfs"):
        return "is a pointer of git-lfs, not the file it points to (git lfs pull)"
    return "is neither a safetensors file nor a torch pickle"
