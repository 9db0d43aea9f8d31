"""The portable form: neighbouring sequences of equal length go through one batched call.

The two branches of a guided request always are of equal length; unlike lengths go one after the
other. Measured against the alternatives on a CPU, padding to the longest with a mask costs 3.6
times as much and a block-diagonal mask 5.5 times. Knows the lengths on the host only, so a CUDA
graph of it holds for these lengths and no others.

Dimension key: T packed tokens, H query heads, G key and value heads, R query heads of one key
head, E head dim, B equal sequences, N tokens of each, M rows of queries (R N), P part of
them, Z = B G.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fit_kernels.attention.implementation import Runs

# Above this length the [N, N] scores of the bmm form no longer pay for themselves on a CPU.
_BMM_MAX_TOKENS = 2048
# Scores of more bytes are worked off in parts of queries that stay in a core's cache.
_CACHED_BYTES, _PART_BYTES = 16 * 2**20, 4 * 2**20


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


class Grouped:
    """In plain PyTorch: runs everywhere, in any dtype."""

    captures = False

    def missing(self) -> str | None:
        """Nothing is needed."""
        return None

    def refusal(self, dtype: torch.dtype, device: torch.device, head_dim: int) -> str | None:
        """Nothing is refused."""
        return None

    def attend(
        self,
        q_THE: Tensor,
        k_TGE: Tensor,
        v_TGE: Tensor,
        cu_seqlens: Tensor,
        runs: Runs,
        max_length: int,
        scale: float | None,
    ) -> Tensor:
        """Attend run by run; `runs` cover every token exactly once."""
        parts = []
        for start, count, length in runs:
            end = start + count * length
            q_BNHE, k_BNGE, v_BNGE = (
                x[start:end].unflatten(0, (count, length)) for x in (q_THE, k_TGE, v_TGE)
            )
            parts.append(_dense_attention(q_BNHE, k_BNGE, v_BNGE, scale))
        return parts[0] if len(parts) == 1 else torch.cat(parts)


GROUPED = Grouped()


def _dense_attention(q_BNHE: Tensor, k_BNGE: Tensor, v_BNGE: Tensor, scale: float | None) -> Tensor:
    q_BHNE, k_BGNE, v_BGNE = (x.transpose(1, 2) for x in (q_BNHE, k_BNGE, v_BNGE))
    tokens, heads = q_BHNE.shape[2], k_BGNE.shape[1]
    # Without a mask, query heads that share a key head are but more rows of queries.
    q_BGME = q_BHNE if q_BHNE.shape[1] == heads else q_BHNE.unflatten(1, (heads, -1)).flatten(2, 3)
    if _prefers_bmm(q_BHNE):
        factor: float = q_BGME.shape[-1] ** -0.5 if scale is None else scale
        q_ZME, k_ZNE, v_ZNE = (x.flatten(0, 1) for x in (q_BGME, k_BGNE, v_BGNE))
        out_BGME = _bmm_attention(q_ZME, k_ZNE, v_ZNE, factor).unflatten(0, q_BGME.shape[:2])
    else:
        out_BGME = F.scaled_dot_product_attention(q_BGME, k_BGNE, v_BGNE, scale=scale)
    if q_BGME is not q_BHNE:
        out_BGME = out_BGME.unflatten(2, (-1, tokens)).flatten(1, 2)
    return out_BGME.transpose(1, 2).flatten(0, 1)


def _bmm_attention(q_ZME: Tensor, k_ZNE: Tensor, v_ZNE: Tensor, factor: float) -> Tensor:
    if torch.is_grad_enabled():
        return _scores(q_ZME, k_ZNE, factor).softmax(-1) @ v_ZNE
    heads, rows, _ = q_ZME.shape
    row_bytes = heads * k_ZNE.shape[1] * q_ZME.element_size()
    part = max(1, _PART_BYTES // row_bytes) if rows * row_bytes > _CACHED_BYTES else rows
    parts = []
    for q_ZPE in q_ZME.split(part, dim=1):
        scores_ZPN = _scores(q_ZPE, k_ZNE, factor)
        parts.append(torch.softmax(scores_ZPN, -1, out=scores_ZPN) @ v_ZNE)
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _scores(q_ZME: Tensor, k_ZNE: Tensor, factor: float) -> Tensor:
    """`factor q k^T`; with a beta of 0 the first argument is not read, only its dtype counts."""
    empty = q_ZME.new_empty(1)
    return torch.baddbmm(empty, q_ZME, k_ZNE.transpose(1, 2), beta=0, alpha=factor)


def _prefers_bmm(q_BHNE: Tensor) -> bool:
    """On a CPU the two plain products beat SDPA (benchmarks/bench_attention.py), up to a length.

    1.3 times in bf16; 2.4 times in fp32 once its products take the fast path; training gains more,
    for SDPA's backward is slow there.
    """
    return q_BHNE.device.type == "cpu" and q_BHNE.shape[2] <= _BMM_MAX_TOKENS
