"""Compile one configuration for one GPU, and measure the machine code.

What is counted, in the PTX that Triton writes (ptxas neither joins nor splits these):

- a vector load or store moves 8 or 16 bytes at once for a thread: `.v2` and `.v4` of 32 bits,
  `.v2` of 64, and 16-byte asynchronous copies into shared memory;
- a scalar load or store moves one 16-bit value of a tensor. Loads of 32 and 64 bits that stand
  alone are not counted: they are per-token numbers (rows, statistics, offsets, coefficients), or
  fp32 data of which a warp reads neighbouring values, one a thread.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from typing import Any

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fit_kernels.aot.specialisation import Configuration
from fit_kernels.aot.targets import Target
from fit_kernels.launch import compile_options

_VECTOR_LOAD = re.compile(r"\bld\.global\S*\.v[248]\.|\bcp\.async\.cg\.shared\.global")
_VECTOR_STORE = re.compile(r"\bst\.global\S*\.v[248]\.")
_SCALAR_LOAD = re.compile(r"\bld\.global(?!\S*\.v[248])\S*\.[busf]16\b")
_SCALAR_STORE = re.compile(r"\bst\.global(?!\S*\.v[248])\S*\.[busf]16\b")
_MATRIX = re.compile(r"\b(wgmma)\.mma_async|\b(tcgen05\.mma)\b|\b(mma\.sync)\.")
_USAGE = re.compile(r"\b(REG|STACK|LOCAL):(\d+)")


@dataclass(frozen=True)
class Measurement:
    """What the machine code of one configuration needs of one GPU.

    Attributes:
        registers: of a thread.
        spill_bytes: of a thread, in local memory.
        shared_bytes: of a program, as its launch asks for it.
        tensor_columns: of tensor memory (sm_100).
        vector_loads, scalar_loads, vector_stores, scalar_stores: instructions, see the module.
        matrix_opcode: the tensor cores' instruction; empty where there is none.
    """

    registers: int
    spill_bytes: int
    shared_bytes: int
    tensor_columns: int
    vector_loads: int
    scalar_loads: int
    vector_stores: int
    scalar_stores: int
    matrix_opcode: str

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values."""
        return asdict(self)


def compile_and_measure(configuration: Configuration, target: Target) -> Measurement:
    """Run Triton's compiler and ptxas; no driver is asked."""
    compiled = triton.compile(
        ASTSource(
            configuration.function,
            configuration.signature,
            configuration.constexprs,
            configuration.attributes,
        ),
        target=GPUTarget("cuda", target.arch, 32),
        options=compile_options(configuration.num_warps, configuration.num_stages),
    )
    usage = _resource_usage(compiled.asm["cubin"])
    ptx: str = compiled.asm["ptx"]
    opcodes = {next(filter(None, found.groups())) for found in _MATRIX.finditer(ptx)}
    return Measurement(
        registers=usage["REG"],
        spill_bytes=usage["STACK"] + usage["LOCAL"],
        shared_bytes=compiled.metadata.shared,
        tensor_columns=getattr(compiled.metadata, "tmem_size", None) or 0,
        vector_loads=len(_VECTOR_LOAD.findall(ptx)),
        scalar_loads=len(_SCALAR_LOAD.findall(ptx)),
        vector_stores=len(_VECTOR_STORE.findall(ptx)),
        scalar_stores=len(_SCALAR_STORE.findall(ptx)),
        matrix_opcode=" ".join(sorted(opcodes)),
    )


def _resource_usage(cubin: bytes) -> dict[str, int]:
    """Ask the cuobjdump that Triton's wheel brings along."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = knobs.nvidia.cuobjdump.path
        answer = subprocess.run(
            [tool, "-res-usage", file.name], check=True, capture_output=True, text=True
        )
    usage = {name: int(value) for name, value in _USAGE.findall(answer.stdout)}
    assert usage.keys() >= {"REG", "STACK", "LOCAL"}, answer.stdout
    return usage
