"""Captions of a packed batch: what of them a network can compute once, before the first step.

Knows packing and the two things every block and every adaLN row wants of a caption; not language
models, nor how a network makes keys out of their states.

Dimension key: B captions of a padded batch, L padded tokens, Y packed caption tokens, S captions,
C channels of the language model, M width of the condition, G key and value heads, E head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class CaptionStates:
    """What a network keeps of captions: the same at every step, so computed once for each.

    Attributes:
        pooled: [S, M], each caption's part of the conditioning vector.
        keys: per block [Y, G, E], captions end to end.
        values: per block [Y, G, E].
        lengths: tokens of each caption, on the host.
    """

    pooled: Tensor
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    lengths: tuple[int, ...]

    @property
    def num_captions(self) -> int:
        """S."""
        return len(self.lengths)


def pack_captions(features_BLC: Tensor, mask_BL: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """Drop the padding of a padded batch.

    Args:
        features_BLC: states of the language model.
        mask_BL: nonzero where a token is the caption's.

    Returns:
        the captions' states end to end [Y, C], and the tokens of each.

    Raises:
        ValueError: a caption has no token.
    """
    lengths = tuple(int(n) for n in mask_BL.bool().sum(1).tolist())
    check_caption_lengths(lengths)
    return features_BLC[mask_BL.bool()], lengths


def check_caption_lengths(lengths: Sequence[int]) -> None:
    """Refuse a caption without tokens; an empty prompt still has its beginning-of-text token.

    Raises:
        ValueError: see above, or there is no caption at all.
    """
    if not lengths or min(lengths) < 1:
        raise ValueError(f"caption lengths {list(lengths)}: every caption must have a token")


def join_captions(parts: Sequence[CaptionStates]) -> CaptionStates:
    """Captions computed apart, in one pack.

    Raises:
        ValueError: there are none.
    """
    if not parts:
        raise ValueError("there are no captions to join")
    return CaptionStates(
        pooled=torch.cat([part.pooled for part in parts]),
        keys=tuple(torch.cat(k) for k in zip(*(part.keys for part in parts), strict=True)),
        values=tuple(torch.cat(v) for v in zip(*(part.values for part in parts), strict=True)),
        lengths=tuple(length for part in parts for length in part.lengths),
    )


def caption_alone(states: CaptionStates, index: int) -> CaptionStates:
    """One caption out of a pack: views, nothing is copied."""
    start = sum(states.lengths[:index])
    end = start + states.lengths[index]
    return CaptionStates(
        pooled=states.pooled[index : index + 1],
        keys=tuple(k[start:end] for k in states.keys),
        values=tuple(v[start:end] for v in states.values),
        lengths=(states.lengths[index],),
    )
