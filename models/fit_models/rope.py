"""Two-dimensional rotary frequencies and their extrapolation to larger grids.

Knows grids, frequencies and the multiplier on cos and sin; not how they are applied
(`fit_kernels.qk_norm_rope`) or kept on a device. Positions are never rescaled: every mode acts on
frequencies. Sources: FiT §3.3 (arXiv:2402.12376), FiTv2 §3 (arXiv:2410.13925), YaRN
(arXiv:2309.00071); the `pro` modes follow the released code, which differs from the paper by a
factor 2 inside the logarithm.

Dimension key: E head dim, N tokens of a grid (row-major).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fit_models.config import RopeConfig


@dataclass(frozen=True)
class AxisFrequencies:
    """Frequencies [E/4] of the height and the width half, and the multiplier on cos and sin."""

    height: Tensor
    width: Tensor
    multiplier: float


def axis_frequencies(head_dim: int, config: RopeConfig, rows: int, columns: int) -> AxisFrequencies:
    """Frequencies for a grid of `rows` x `columns` tokens under the configured mode.

    Raises:
        ValueError: the head dim is not a multiple of 4.
    """
    if head_dim % 4:
        raise ValueError(f"head dim {head_dim} is not a multiple of 4")
    longest = max(rows, columns)
    height_len, width_len = (rows, columns) if config.decouple else (longest, longest)
    return AxisFrequencies(
        height=_frequencies(head_dim // 2, config, height_len),
        width=_frequencies(head_dim // 2, config, width_len),
        multiplier=_multiplier(config, rows, columns),
    )


def rope_table(
    rows: int,
    columns: int,
    head_dim: int,
    config: RopeConfig,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every token of a grid, multiplier included.

    Returns:
        cos, sin: [N, E/2] in `dtype` (of fp32 angles), N = rows x columns in row-major order; the
        first E/4 pairs turn with the row, the others with the column.
    """
    frequencies = axis_frequencies(head_dim, config, rows, columns)
    row_N = torch.arange(rows, dtype=torch.float32).repeat_interleave(columns)
    column_N = torch.arange(columns, dtype=torch.float32).repeat(rows)
    angles = torch.cat(
        (row_N[:, None] * frequencies.height, column_N[:, None] * frequencies.width), dim=1
    ).to(dtype)
    return angles.cos() * frequencies.multiplier, angles.sin() * frequencies.multiplier


def _frequencies(dim: int, config: RopeConfig, length: int) -> Tensor:
    """The dim/2 frequencies of one axis that is `length` tokens long."""
    ratio = max(length / config.ori_max_pe_len, 1.0)
    exponent = torch.arange(0, dim, 2, dtype=torch.float32) / dim
    base = config.theta**-exponent
    linear = base / ratio
    ntk = (config.theta * ratio ** (dim / (dim - 2))) ** -exponent if dim > 2 else base
    match config.mode:
        case "normal":
            return base
        case "linear":
            return linear
        case "ntk-aware" | "ntk-aware-pro1" | "ntk-aware-pro2":
            return ntk
        case "yarn":
            keep = 1.0 - _ramp(dim, config, 32.0, 1.0)
            return linear * (1.0 - keep) + base * keep
        case "ntk-by-parts":
            keep_ntk = 1.0 - _ramp(dim, config, 1.25, 0.75)
            mixed = linear * (1.0 - keep_ntk) + ntk * keep_ntk
            keep_base = 1.0 - _ramp(dim, config, 16.0, 2.0)
            return mixed * (1.0 - keep_base) + base * keep_base
    raise AssertionError(config.mode)


def _ramp(dim: int, config: RopeConfig, fast_turns: float, slow_turns: float) -> Tensor:
    """0 for dimensions that turn often within the trained length, 1 for those that turn rarely."""

    def dimension_of(turns: float) -> float:
        return (
            dim
            * math.log(config.ori_max_pe_len / (turns * 2.0 * math.pi))
            / (2.0 * math.log(config.theta))
        )

    low = max(math.floor(dimension_of(fast_turns)), 0)
    high: float = min(math.ceil(dimension_of(slow_turns)), dim - 1)
    if low == high:
        high += 0.001
    return ((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0.0, 1.0)


def _multiplier(config: RopeConfig, rows: int, columns: int) -> float:
    """Attention temperature as a factor on cos and sin; both axes count even when decoupled."""
    trained = config.ori_max_pe_len
    longest = max(rows, columns)
    match config.mode:
        case "yarn":
            stretch = longest / trained
            return 0.1 * math.log(stretch) + 1.0 if stretch > 1.0 else 1.0
        case "ntk-aware-pro1":
            return _log_ratio(longest, trained)
        case "ntk-aware-pro2":
            return _log_ratio(rows * columns, trained * trained)
    return 1.0


def _log_ratio(length: int, trained: int) -> float:
    if 2.0 * length / trained <= 1.0:
        return 1.0
    return math.sqrt(math.log(2.0 * length) / math.log(trained))
