"""Attention from packed sequences to packed captions, each sequence to its own.

Two packs with lengths of their own, end to end in the same order. In plain PyTorch: neighbours
whose both lengths are equal go through one batched call, so on a GPU this is a call for each run.

Dimension key: T packed tokens, Y packed caption tokens, H query heads, G key and value heads,
E head dim, B equal sequences, N tokens of each, L tokens of each caption.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F


def cross_attend(
    q_THE: Tensor,
    k_YGE: Tensor,
    v_YGE: Tensor,
    lengths: Sequence[int],
    caption_lengths: Sequence[int],
) -> Tensor:
    """Softmax attention of every sequence to its caption, [T, H, E]; logits over sqrt(E).

    Args:
        q_THE: queries of all sequences, end to end.
        k_YGE: keys of all captions, end to end, one caption a sequence in the same order; each of
            the G heads serves H / G neighbouring query heads.
        v_YGE: values.
        lengths: tokens of each sequence, on the host; they cover every token.
        caption_lengths: likewise of each caption.

    Raises:
        ValueError: there are not as many captions as sequences.
    """
    parts = []
    for start, caption_start, count, length, caption_length in joint_runs(
        tuple(lengths), tuple(caption_lengths)
    ):
        q_BNHE = q_THE[start : start + count * length].unflatten(0, (count, length))
        k_BLGE, v_BLGE = (
            x[caption_start : caption_start + count * caption_length].unflatten(
                0, (count, caption_length)
            )
            for x in (k_YGE, v_YGE)
        )
        parts.append(_dense(q_BNHE, k_BLGE, v_BLGE))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


@lru_cache(maxsize=256)
def joint_runs(
    lengths: tuple[int, ...], caption_lengths: tuple[int, ...]
) -> tuple[tuple[int, int, int, int, int], ...]:
    """Group neighbours equal in both lengths.

    Returns:
        (first token, first caption token, number of sequences, tokens and caption tokens of each).

    Raises:
        ValueError: there are not as many captions as sequences.
    """
    if len(lengths) != len(caption_lengths):
        raise ValueError(f"{len(caption_lengths)} captions for {len(lengths)} sequences")
    runs: list[tuple[int, int, int, int, int]] = []
    start = caption_start = 0
    for length, caption_length in zip(lengths, caption_lengths, strict=True):
        if runs and runs[-1][3:] == (length, caption_length):
            first, caption_first, count = runs[-1][:3]
            runs[-1] = (first, caption_first, count + 1, length, caption_length)
        else:
            runs.append((start, caption_start, 1, length, caption_length))
        start += length
        caption_start += caption_length
    return tuple(runs)


def _dense(q_BNHE: Tensor, k_BLGE: Tensor, v_BLGE: Tensor) -> Tensor:
    q_BHNE, k_BGLE, v_BGLE = (x.transpose(1, 2) for x in (q_BNHE, k_BLGE, v_BLGE))
    tokens, heads = q_BHNE.shape[2], k_BGLE.shape[1]
    # Without a mask, query heads that share a key head are but more rows of queries.
    q_BGME = q_BHNE.unflatten(1, (heads, -1)).flatten(2, 3)
    out_BGME = F.scaled_dot_product_attention(q_BGME, k_BGLE, v_BGLE)
    return out_BGME.unflatten(2, (-1, tokens)).flatten(1, 2).transpose(1, 2).flatten(0, 1)
