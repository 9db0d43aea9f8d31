"""The ternary product in C: built once by the machine's compiler, kept, and called.

Knows how `native.c` becomes a library and what its function takes; the method is described there.
A library belongs to its source, its compiler's flags and the processor's instructions: another of
any of these is built anew, in about a second.

Dimension key: T packed tokens, D width, F features, Q = F / 4 rows of bytes.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

_SOURCE = Path(__file__).with_name("native.c")
_FLAGS = ("-O3", "-march=native", "-shared", "-fPIC", "-std=gnu11")
_THREADS = "-fopenmp"
_TIME_LIMIT_S = 60


class _CannotBuild(Exception):
    """No library; the text says why."""


def obstacle_to_native() -> str | None:
    """Why the C product cannot run here; None if it can. The first question builds it."""
    found = _built()
    return found if isinstance(found, str) else None


def native_product(
    x_TD: Tensor, packed_QD: Tensor, alpha_1: Tensor, bias_F: Tensor | None
) -> Tensor:
    """See `fit_kernels.reference.ternary_linear`; tokens and bias are fp32 here.

    Raises:
        ValueError: the library cannot be built.
        MemoryError: there is no room for the tokens laid out anew.
    """
    function = _built()
    if isinstance(function, str):
        raise ValueError(f"ternary product 'native' cannot run: {function}")
    (tokens, width), rows = x_TD.shape, packed_QD.shape[0]
    x_TD, packed_QD = x_TD.contiguous(), packed_QD.contiguous()
    bias = None if bias_F is None else bias_F.contiguous()
    out_TF = x_TD.new_empty(tokens, 4 * rows)
    failed = function(
        x_TD.data_ptr(),
        packed_QD.data_ptr(),
        None if bias is None else bias.data_ptr(),
        out_TF.data_ptr(),
        float(alpha_1),
        tokens,
        width,
        rows,
        torch.get_num_threads(),
    )
    if failed:
        raise MemoryError(f"ternary product of {tokens} tokens of {width} values")
    return out_TF


@functools.cache
def _built() -> Callable[..., int] | str:
    """The C function, or why there is none."""
    try:
        library = ctypes.CDLL(str(_library()))
    except (_CannotBuild, OSError) as error:
        return str(error)
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    function = library.ternary_linear
    function.argtypes = [*[pointer] * 4, ctypes.c_float, count, count, count, ctypes.c_int]
    function.restype = ctypes.c_int
    return function


def _library() -> Path:
    """The path of the library; built where it is not there yet."""
    if sys.byteorder != "little":
        raise _CannotBuild("the processor's byte order is not little-endian")
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise _CannotBuild("there is no C compiler (install gcc)")
    source = _SOURCE.read_bytes()
    instructions = _run([compiler, "-march=native", "-dM", "-E", "-x", "c", os.devnull])
    key = hashlib.sha256(b"\0".join((source, repr(_FLAGS).encode(), instructions.encode())))
    path = _cache_folder() / f"ternary-{key.hexdigest()[:16]}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            new = Path(folder) / path.name
            command = [compiler, *_FLAGS, str(_SOURCE), "-o", str(new)]
            try:
                _run([*command, _THREADS])
            except _CannotBuild:
                _run(command)  # a compiler without OpenMP: one thread
            new.replace(path)
    return path


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(base) / "fit_kernels"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=_TIME_LIMIT_S
        )
    except subprocess.CalledProcessError as error:
        message = (error.stderr or "").strip()[-400:]
        raise _CannotBuild(f"{command[0]} says: {message}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _CannotBuild(f"{command[0]}: {error}") from error
    return done.stdout
