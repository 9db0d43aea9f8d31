"""Norms whose weights move with the noise level, DiMR's only way of telling it.

Every weight is a mixture of two stored vectors, element by element, by a sigmoid of time. It
depends on the timestep alone, so values are made as rows, one for each sequence, and handed in
(DiMR, arXiv:2406.09416, "time-dependent layer normalisation").

Dimension key: T packed tokens, R modulation rows, D width, M values of all vectors, W values of
joined features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor, nn

from fit_kernels import gather_rows, layer_norm_modulate

# The original adds 1e-8 to the root of the mean square; inside the root that is its square.
_RMS_EPS = 1e-16
_LAYER_EPS = 1e-5

Rows = Iterator[Tensor]


class TimedVector(nn.Module):
    """A vector that moves between two, with the names of the released files.

    `nodecay_weight` is stored as its difference to 1.
    """

    def __init__(self, size: int, start: float) -> None:
        super().__init__()
        self.start = start
        self.param0 = nn.Parameter(torch.full((size,), start))
        self.param1 = nn.Parameter(torch.full((size,), start))
        self.nodecay_weight = nn.Parameter(torch.zeros(size))
        self.nodecay_bias = nn.Parameter(torch.zeros(size))


def timed_rows(vectors: Sequence[TimedVector], tau_R1: Tensor) -> Tensor:
    """All vectors' values side by side, each less its `start`: so a scale is what is added to 1.

    Made in fp32 and at once, for there are hundreds of vectors.

    Args:
        vectors: of one branch, in the order of use.
        tau_R1: time in -1 ... 1, high is noise.

    Returns:
        [R, M] in the dtype of the vectors.
    """

    def joined(name: str) -> Tensor:
        return torch.cat([getattr(vector, name) for vector in vectors]).float()

    share_RM = torch.sigmoid((joined("nodecay_weight") + 1.0) * tau_R1 + joined("nodecay_bias"))
    values_RM = share_RM * joined("param0") + (1.0 - share_RM) * joined("param1")
    parts, first = [], 0
    for start, group in groupby(vectors, key=lambda vector: vector.start):
        width = sum(len(vector.param0) for vector in group)
        parts.append(values_RM[:, first : first + width] - start)
        first += width
    return torch.cat(parts, dim=1).to(vectors[0].param0.dtype)


class TimedRMSNorm(nn.Module):
    """RMSNorm with a timed scale; takes one of the rows."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.scale = TimedVector(size, 1.0)

    def forward(self, x_TD: Tensor, rows: Rows, row_T: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        return layer_norm_modulate(x_TD, None, next(rows), row_T, _RMS_EPS, "rms")


class TimedLayerNorm(nn.Module):
    """LayerNorm with timed scale and shift; takes two of the rows."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = TimedVector(size, 1.0)
        self.bias = TimedVector(size, 0.0)

    def forward(self, x_TD: Tensor, rows: Rows, row_T: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        scale_RD, shift_RD = next(rows), next(rows)
        return layer_norm_modulate(x_TD, shift_RD, scale_RD, row_T, _LAYER_EPS)

    def joined(self, parts: Sequence[Tensor], rows: Rows, row_T: Tensor) -> Tensor:
        """The norm of many [T, D] side by side, [T, W]; statistics are summed part by part.

        38400 values of a token are more than a fused norm holds at once.
        """
        scale_RW, shift_RW = next(rows), next(rows)
        widths = [part.shape[1] for part in parts]
        width = sum(widths)
        sums = [part.sum(1, keepdim=True, dtype=torch.float32) for part in parts]
        mean_T1 = torch.stack(sums).sum(0) / width
        squares = [(part - mean_T1).square().sum(1, keepdim=True) for part in parts]
        factor_T1 = torch.rsqrt(torch.stack(squares).sum(0) / width + _LAYER_EPS)
        scales, shifts = scale_RW.split(widths, dim=1), shift_RW.split(widths, dim=1)
        normed = [
            torch.addcmul(
                gather_rows(shift, row_T),
                ((part - mean_T1) * factor_T1).to(part.dtype),
                gather_rows(scale + 1.0, row_T),
            )
            for part, scale, shift in zip(parts, scales, shifts, strict=True)
        ]
        return torch.cat(normed, dim=1)
