"""Which implementation of attention runs: asked for by name, or chosen and said in the log.

Asked for by name an implementation loads or raises, and at a call refuses what it cannot take.
`auto` decides for each (device, dtype, head dim) once.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Iterator

import torch
from torch import Tensor

from fit_kernels.attention.implementation import HALF_DTYPES, Implementation, Runs

_log = logging.getLogger(__name__)

# name -> module and object; a module is imported when its implementation is asked about.
_WHERE = {
    "grouped": ("grouped", "GROUPED"),
    "torch-varlen": ("torch_varlen", "TORCH_VARLEN"),
    "fused": ("fused", "FUSED"),
    "flash-attn-2": ("flash_attn", "FLASH_ATTN_2"),
    "flash-attn-3": ("flash_attn", "FLASH_ATTN_3"),
    "flash-attn-4": ("flash_attn", "FLASH_ATTN_4"),
    "xformers": ("xformers_blocks", "XFORMERS_BLOCKS"),
}
ATTENTIONS = tuple(_WHERE)
_AUTO = "auto"

# On Hopper versions 3 and 4 are reported at about twice version 2, which is what torch's own form
# runs (torch 2.11), at 96 of 72 head dims. Ours takes 80 of them and is not yet measured against
# torch's, so it comes after; xformers is never taken unasked, for its wheels fit one torch only.
_HALF_ORDER = ("flash-attn-3", "flash-attn-4", "torch-varlen", "flash-attn-2", "fused", "grouped")
_WIDE_ORDER = ("fused", "grouped")

_current = [_AUTO]


def use_attention(name: str) -> None:
    """Choose the implementation of attention from now on, in this process.

    Raises:
        ValueError: the name is unknown, or what it needs is not installed.
    """
    if name != _AUTO and (missing := implementation(name).missing()):
        raise ValueError(f"attention {name!r} cannot run: {missing}")
    _current[0] = name


def current_attention() -> str:
    """The name that was asked for, which may be "auto"."""
    return _current[0]


def implementation(name: str) -> Implementation:
    """Look up an implementation by its name.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in _WHERE:
        raise ValueError(f"attention {name!r} is unknown; known: {_AUTO}, {', '.join(_WHERE)}")
    module, attribute = _WHERE[name]
    return getattr(importlib.import_module(f"fit_kernels.attention.{module}"), attribute)


def chosen_attention(dtype: torch.dtype, device: torch.device, head_dim: int) -> str:
    """The name of what runs for these values.

    Raises:
        ValueError: what was asked for by name does not take them.
    """
    name = _current[0]
    if name == _AUTO:
        return _automatic(dtype, device, head_dim)
    _check(name, dtype, device, head_dim)
    return name


def capture_obstacle(dtype: torch.dtype, device: torch.device, head_dim: int) -> str | None:
    """Why a CUDA graph of what runs for these values must not be replayed; None if it may.

    Raises:
        ValueError: what was asked for by name does not take them.
    """
    name = chosen_attention(dtype, device, head_dim)
    if implementation(name).captures:
        return None
    return f"attention {name!r} knows the lengths of sequences on the host only"


def obstacles(
    dtype: torch.dtype, device: torch.device, head_dim: int
) -> Iterator[tuple[str, str | None]]:
    """Every implementation, and why it cannot run for these values; None if it can."""
    for name in ATTENTIONS:
        candidate = implementation(name)
        yield name, candidate.missing() or candidate.refusal(dtype, device, head_dim)


def attention_varlen(
    q_THE: Tensor,
    k_TGE: Tensor,
    v_TGE: Tensor,
    cu_seqlens: Tensor,
    runs: Runs,
    max_length: int,
    scale: float | None = None,
) -> Tensor:
    """Softmax attention inside each sequence, shape [T, H, E].

    Args:
        q_THE: queries of all sequences, end to end.
        k_TGE: keys; each of the G heads serves H / G neighbouring heads of queries.
        v_TGE: values.
        cu_seqlens: int32 [S + 1], where each sequence starts; the last entry is T.
        runs: `equal_runs` of the sequence lengths, on the host.
        max_length: tokens of the longest sequence, or more.
        scale: of the logits; `E ** -0.5` if None.

    Raises:
        ValueError: the implementation asked for does not take dtype, device or head dim.
    """
    name = chosen_attention(q_THE.dtype, q_THE.device, q_THE.shape[-1])
    return implementation(name).attend(q_THE, k_TGE, v_TGE, cu_seqlens, runs, max_length, scale)


@functools.cache
def _automatic(dtype: torch.dtype, device: torch.device, head_dim: int) -> str:
    if device.type == "cpu":
        _log.info("attention: grouped (the device is cpu)")
        return "grouped"
    passed_over = []
    for name in _HALF_ORDER if dtype in HALF_DTYPES else _WIDE_ORDER:
        candidate = implementation(name)
        obstacle = candidate.missing() or candidate.refusal(dtype, device, head_dim)
        if obstacle is None:
            reason = "; ".join(passed_over) or "the first choice"
            _log.info("attention: %s for %s of head dim %d (%s)", name, dtype, head_dim, reason)
            return name
        passed_over.append(f"not {name}: {obstacle}")
    raise AssertionError("grouped attention takes everything")


@functools.cache
def _check(name: str, dtype: torch.dtype, device: torch.device, head_dim: int) -> None:
    if refusal := implementation(name).refusal(dtype, device, head_dim):
        raise ValueError(f"attention {name!r}: {refusal}")
