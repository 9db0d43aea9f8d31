"""How far pictures are from others of the same size."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy

EQUAL_DB = 100.0
"""Stands for "no difference at all", and is the most that is said: infinity is no JSON."""


def psnr_db(pixels: numpy.ndarray, others: numpy.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 pictures of one size, in decibels."""
    error = float(((pixels.astype(numpy.float64) - others) ** 2).mean())
    if error == 0.0:
        return EQUAL_DB
    return min(EQUAL_DB, 10.0 * math.log10(255.0**2 / error))


def mean_psnr_db(pictures: Sequence[numpy.ndarray], others: Sequence[numpy.ndarray]) -> float:
    """Mean over pairs of pictures.

    Raises:
        ValueError: there are none.
    """
    if not pictures:
        raise ValueError("no pictures to compare")
    return statistics.fmean(psnr_db(a, b) for a, b in zip(pictures, others, strict=True))
