"""How the Lumina networks that read captions take them in.

Knows what is common to Flag-DiT's and Next-DiT's; not language models.
Sources: Lumina-T2X (arXiv:2405.05945, §2.2), Lumina-Next (arXiv:2406.18583).

Dimension key: S captions or sequences, Y packed caption tokens, C channels of the language model,
M width of the condition.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fit_models.captions import CaptionStates, check_caption_lengths
from fit_models.networks.lumina_blocks import blocks_of
from fit_models.networks.lumina_config import LuminaTextConfig
from fit_models.networks.lumina_layers import Surroundings, proportional_factor
from fit_models.packing import PackedLayout


def caption_embedder(config: LuminaTextConfig) -> nn.Sequential:
    """From the mean of a caption's states to its part of the condition."""
    return nn.Sequential(
        nn.LayerNorm(config.caption_channels),
        nn.Linear(config.caption_channels, config.condition_size),
    )


def caption_states(
    embedder: nn.Sequential, layers: nn.ModuleList, features_YC: Tensor, lengths: Sequence[int]
) -> CaptionStates:
    """All that depends on captions alone, for every step to come.

    Args:
        embedder: of `caption_embedder`.
        layers: blocks with caption keys.
        features_YC: states of the language model, captions end to end, without padding.
        lengths: tokens of each caption.

    Raises:
        ValueError: a caption has no token, or the lengths do not add up.
    """
    check_caption_lengths(lengths)
    if sum(lengths) != len(features_YC):
        raise ValueError(f"{len(features_YC)} caption tokens for lengths {list(lengths)}")
    means = [part.float().mean(0) for part in features_YC.split(list(lengths))]
    pooled_SM = embedder(torch.stack(means).to(features_YC.dtype))
    keys, values = zip(
        *(block.caption_keys(features_YC) for block in blocks_of(layers)), strict=True
    )
    return CaptionStates(pooled_SM, keys, values, tuple(lengths))


def surroundings_of(
    layout: PackedLayout, captions: CaptionStates, config: LuminaTextConfig
) -> Surroundings:
    """What attention needs: where sequences and captions lie, and the temperature.

    Raises:
        ValueError: there are not as many captions as sequences.
    """
    if captions.num_captions != layout.num_sequences:
        raise ValueError(f"{captions.num_captions} captions for {layout.num_sequences} sequences")
    base = config.proportional_base
    factor = proportional_factor(layout, base) if base is not None else None
    return Surroundings(layout, factor, captions.lengths)
