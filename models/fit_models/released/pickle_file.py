"""Tensors out of a torch pickle, without running what else may be in it.

Everything goes through torch's own restricted reader (`weights_only=True`).
"""

from __future__ import annotations

import pickle
import re
import struct
import tempfile
from pathlib import Path
from typing import Any

import torch

from fit_models.released.container import Container

# What a reader meets in bytes that nobody wrote on purpose, or somebody on purpose did.
_FAILURES = (
    pickle.UnpicklingError,
    struct.error,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    OSError,
)
_FOREIGN = re.compile(r"GLOBAL:? (\S+)")


def load_pickle(path: Path, container: Container) -> Any:
    """What a torch pickle holds, on the CPU; memory-mapped where its container allows.

    Raises:
        ValueError: the file is broken, or holds anything but tensors and plain containers.
    """
    try:
        if container is not Container.TORCH_ZIP:
            with path.open("rb") as file:
                return torch.load(file, map_location="cpu", weights_only=True)
        with tempfile.TemporaryDirectory() as folder:
            link = Path(folder, "weights.bin")  # torch takes a name in .safetensors at its word
            link.symlink_to(path.resolve())
            return torch.load(link, map_location="cpu", weights_only=True, mmap=True)
    except _FAILURES as error:
        raise ValueError(f"weights: {path} ({container.value}) {_say_why(error)}") from error


def _say_why(error: Exception) -> str:
    """In our words: torch's advise to read the file without the restriction."""
    text = str(error)
    if foreign := _FOREIGN.search(text):
        return (
            f"asks for {foreign[1].rstrip('.')}, which is neither a tensor nor a plain container; "
            "it is not loaded, for it could run code"
        )
    first = text.strip().splitlines()[0] if text.strip() else type(error).__name__
    return f"cannot be read, it may be truncated: {first.split('. ')[0]}"
