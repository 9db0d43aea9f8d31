"""Ternary weights as bytes: which value a float weight becomes, and where its two bits lie.

The layout is that of TerDiT's released files (arXiv:2405.14854), which is hqq's `2bit_u8`: the
matrix is cut into four blocks of rows, and a byte holds one value of each block, the first block in
the highest bits. A code is the value plus one; code 3 stands for nothing.

Dimension key: F features (rows of the weight), D width, Q = F / 4 rows of bytes.
"""

from __future__ import annotations

import torch
from torch import Tensor

VALUES_PER_BYTE = 4
_SHIFTS = (6, 4, 2, 0)
# Added to the mean, so that a weight of zeros divides by something (TerDiT's code).
_SMALLEST_MEAN = 1e-6


def ternarised(weight_FD: Tensor) -> Tensor:
    """The nearest of -1, 0 and 1 to each weight over the mean size of all: [F, D], same dtype.

    `clamp(round(W / (mean|W| + 1e-6)), -1, 1)`, halves to even (BitNet b1.58, arXiv:2402.17764,
    eq. 1-3, as TerDiT quantizes). The mean is not part of the layer's weight.
    """
    mean = weight_FD.abs().mean()
    return (weight_FD / (mean + _SMALLEST_MEAN)).round().clamp(-1.0, 1.0)


def pack_ternary(values_FD: Tensor) -> Tensor:
    """Pack values -1, 0 and 1: any dtype [F, D] -> uint8 [Q, D].

    Raises:
        ValueError: the rows are no multiple of four.
    """
    if values_FD.shape[0] % VALUES_PER_BYTE:
        raise ValueError(
            f"a ternary weight has {values_FD.shape[0]} rows; they are packed four to a byte, so "
            "their number must be a multiple of 4"
        )
    codes = (values_FD + 1).to(torch.uint8).chunk(VALUES_PER_BYTE)
    packed_QD = torch.zeros_like(codes[0])
    for code_QD, shift in zip(codes, _SHIFTS, strict=True):
        packed_QD |= code_QD << shift
    return packed_QD


def unpack_ternary(packed_QD: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The inverse of `pack_ternary`: uint8 [Q, D] -> values -1, 0 and 1, [F, D]."""
    codes = torch.cat([(packed_QD >> shift) & 3 for shift in _SHIFTS])
    return codes.to(dtype) - 1


def check_packed(name: str, packed_QD: Tensor) -> None:
    """Refuse bytes that are no ternary weights.

    Raises:
        ValueError: a code is 3.
    """
    if bool((packed_QD & (packed_QD >> 1) & 0b01010101).any()):
        raise ValueError(f"{name} holds the code 3, which stands for no ternary value")
