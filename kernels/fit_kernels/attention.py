"""Attention over packed sequences of unequal length: nobody sees anybody else, nobody is padded.

Neighbouring sequences of equal length (the two branches of a guided request always are) go through
one batched call; unlike lengths go one after the other. Measured against the alternatives on a CPU,
padding to the longest with a mask costs 3.6 times as much and a block-diagonal mask 5.5 times.

Dimension key: T packed tokens, H heads, E head dim, G equal sequences, N tokens of each.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

# Above this length the [N, N] scores of the bmm form no longer pay for themselves on a CPU.
_BMM_MAX_TOKENS = 2048


def equal_runs(lengths: Sequence[int]) -> tuple[tuple[int, int, int], ...]:
    """Group neighbouring equal lengths: (first token, number of sequences, tokens of each)."""
    runs: list[tuple[int, int, int]] = []
    start = 0
    for length in lengths:
        if runs and runs[-1][2] == length and runs[-1][0] + runs[-1][1] * length == start:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1, length)
        else:
            runs.append((start, 1, length))
        start += length
    return tuple(runs)


def attention_varlen(
    q_THE: Tensor,
    k_THE: Tensor,
    v_THE: Tensor,
    runs: Sequence[tuple[int, int, int]],
    scale: float | None = None,
) -> Tensor:
    """Softmax attention inside each sequence, shape [T, H, E].

    Args:
        q_THE: queries of all sequences, end to end.
        k_THE: keys.
        v_THE: values.
        runs: `equal_runs` of the sequence lengths; covers every token exactly once.
        scale: of the logits; `E ** -0.5` if None.
    """
    parts = []
    for start, g, n in runs:
        end = start + g * n
        q_GNHE, k_GNHE, v_GNHE = (x[start:end].unflatten(0, (g, n)) for x in (q_THE, k_THE, v_THE))
        parts.append(_dense_attention(q_GNHE, k_GNHE, v_GNHE, scale))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _dense_attention(q_GNHE: Tensor, k_GNHE: Tensor, v_GNHE: Tensor, scale: float | None) -> Tensor:
    q_GHNE, k_GHNE, v_GHNE = (x.transpose(1, 2) for x in (q_GNHE, k_GNHE, v_GNHE))
    if _prefers_bmm(q_GHNE):
        factor: float = q_GHNE.shape[-1] ** -0.5 if scale is None else scale
        scores_GHNN = (q_GHNE * factor) @ k_GHNE.transpose(-1, -2)
        out_GHNE = scores_GHNN.softmax(-1).to(v_GHNE.dtype) @ v_GHNE
    else:
        out_GHNE = F.scaled_dot_product_attention(q_GHNE, k_GHNE, v_GHNE, scale=scale)
    return out_GHNE.transpose(1, 2).flatten(0, 1)


def _prefers_bmm(q_GHNE: Tensor) -> bool:
    """On a CPU the two plain products beat SDPA (benchmarks/bench_attention.py), up to a length.

    1.3 times in bf16; 2.4 times in fp32 once its products take the fast path; training gains more,
    for SDPA's backward is slow there.
    """
    return q_GHNE.device.type == "cpu" and q_GHNE.shape[2] <= _BMM_MAX_TOKENS
