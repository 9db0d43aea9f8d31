"""The GPUs that kernels are compiled for, and what one multiprocessor of each has.

Sources: CUDA C++ Programming Guide, table "Technical Specifications per Compute Capability";
tensor memory: PTX ISA, section "Tensor Memory".
"""

from __future__ import annotations

from dataclasses import dataclass

REGISTERS = 65536
REGISTER_UNIT = 8  # registers of a thread are given out in units of this many
WARP = 32
TENSOR_MEMORY_COLUMNS = 512


@dataclass(frozen=True)
class Target:
    """A compute capability.

    Attributes:
        arch: ten times it, as compilers write it.
        shared_bytes: shared memory one program may have.
        matrix_opcode: the PTX instruction of its tensor cores at full rate.
    """

    arch: int
    shared_bytes: int
    matrix_opcode: str


TARGETS = {
    target.arch: target
    for target in (
        Target(80, 163 * 1024, "mma.sync"),
        Target(90, 227 * 1024, "wgmma"),
        Target(100, 227 * 1024, "tcgen05.mma"),
    )
}
