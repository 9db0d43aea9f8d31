"""The two blocks of the Lumina networks, and a stack of them.

Flag-DiT's has a norm, a shift and a scale in front of each half, and a bare gate behind it.
Next-DiT's has a norm on both sides, no shift, and the tanh of a gate; it comes under two sets of
names. Weights of norms are folded into the modulation rows, so they cost nothing for each token;
rows are fp32 then whatever the dtype of the tokens.
Sources: Lumina-T2X (arXiv:2405.05945, §2.2), Lumina-Next (arXiv:2406.18583, §2.1).

Dimension key: T packed tokens, S sequences, D width, M width of the condition, Y packed caption
tokens, C channels of the language model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fit_models.captions import CaptionStates
from fit_models.layers import linear_at
from fit_models.modulation_rows import Modulation
from fit_models.networks.lumina_config import LuminaConfig
from fit_models.networks.lumina_layers import (
    CaptionKeys,
    FeedForward,
    LuminaAttention,
    LuminaFinalLayer,
    NormRows,
    RmsWeight,
    Surroundings,
    adaln,
    folded,
)


class LuminaBlock(nn.Module):
    """Attention and MLP between norms; what is in a modulation row is the subclass's matter."""

    vectors: int

    def __init__(self, config: LuminaConfig, caption_channels: int | None) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.attention = LuminaAttention(config, caption_channels)
        self.feed_forward = FeedForward(config.hidden_size, config.mlp_hidden)
        self.adaLN_modulation = adaln(config, self.vectors)
        if caption_channels is not None:
            self.attention_y_norm = RmsWeight(caption_channels)

    def caption_keys(self, features_YC: Tensor) -> CaptionKeys:
        """Keys and values of caption states, each [Y, G, E]."""
        weight_C = self.attention_y_norm.weight
        return self.attention.caption_keys(
            F.rms_norm(features_YC, weight_C.shape, weight_C, self.eps)
        )

    def projected(self, condition_SM: Tensor) -> tuple[Tensor, ...]:
        """The vectors of adaLN as the release has them, each [S, D]."""
        return linear_at(self.adaLN_modulation, 1)(condition_SM).chunk(self.vectors, dim=-1)


class FlagBlock(LuminaBlock):
    """x += gate f(norm(x) (1 + scale) + shift), twice."""

    vectors = 6

    def __init__(self, config: LuminaConfig, caption_channels: int | None = None) -> None:
        super().__init__(config, caption_channels)
        self.attention_norm = RmsWeight(config.hidden_size)
        self.ffn_norm = RmsWeight(config.hidden_size)

    def rows(self, condition_SM: Tensor) -> Tensor:
        """[S, 6 D]: shift, scale, gate of attention, then of the MLP; norm weights inside."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.projected(condition_SM)
        scale1 = folded(scale1, self.attention_norm.weight)
        scale2 = folded(scale2, self.ffn_norm.weight)
        return torch.cat((shift1, scale1, gate1, shift2, scale2, gate2), dim=-1)

    def norm_rows(self, rows: Tensor) -> NormRows:
        """The norm in front of it."""
        shift, scale = rows.chunk(6, dim=-1)[:2]
        return NormRows(shift, scale, self.eps, "rms")

    def forward(
        self,
        x_TD: Tensor,
        normed_TD: Tensor,
        rows_S6D: Tensor,
        following: NormRows,
        row_T: Tensor,
        around: Surroundings,
        captions: CaptionKeys | None,
    ) -> tuple[Tensor, Tensor]:
        """Advance the residual stream; norms are taken where the stream is last written.

        Args:
            x_TD: the residual stream.
            normed_TD: the stream as this block's first norm leaves it.
            rows_S6D: of `rows`.
            following: the norm of what follows.
            row_T: each token's row.
            around: where sequences and captions lie.
            captions: this block's keys and values, or None.

        Returns:
            the stream, and the stream as `following` leaves it, each [T, D].
        """
        _, _, gate1, shift2, scale2, gate2 = rows_S6D.chunk(6, dim=-1)
        y_TD = self.attention(normed_TD, around, captions)
        middle = NormRows(shift2, scale2, self.eps, "rms")
        x_TD, normed_TD = middle.after(x_TD, y_TD, gate1, row_T)
        return following.after(x_TD, self.feed_forward(normed_TD), gate2, row_T)


class SandwichBlock(LuminaBlock):
    """x += tanh(gate) norm(f(norm(x) (1 + scale))), twice."""

    vectors = 4

    def weights(self) -> tuple[Tensor | None, Tensor, Tensor | None, Tensor]:
        """Weights of the norms before and after attention, then the MLP; None for none."""
        raise NotImplementedError

    def rows(self, condition_SM: Tensor) -> Tensor:
        """[S, 4 D]: scale and gate of attention, then of the MLP; norm weights, tanh inside."""
        before1, after1, before2, after2 = self.weights()
        scale1, gate1, scale2, gate2 = self.projected(condition_SM)
        scale1 = scale1 if before1 is None else folded(scale1, before1)
        scale2 = scale2 if before2 is None else folded(scale2, before2)
        return torch.cat((scale1, _scaled(gate1, after1), scale2, _scaled(gate2, after2)), dim=-1)

    def norm_rows(self, rows: Tensor) -> NormRows:
        """The norm in front of it."""
        return NormRows(None, rows.chunk(4, dim=-1)[0], self.eps, "rms")

    def forward(
        self,
        x_TD: Tensor,
        normed_TD: Tensor,
        rows_S4D: Tensor,
        following: NormRows,
        row_T: Tensor,
        around: Surroundings,
        captions: CaptionKeys | None,
    ) -> tuple[Tensor, Tensor]:
        """As `FlagBlock.forward`."""
        _, gate1, scale2, gate2 = rows_S4D.chunk(4, dim=-1)
        width = (x_TD.shape[-1],)
        y_TD = F.rms_norm(self.attention(normed_TD, around, captions), width, eps=self.eps)
        middle = NormRows(None, scale2, self.eps, "rms")
        x_TD, normed_TD = middle.after(x_TD, y_TD, gate1, row_T)
        y_TD = F.rms_norm(self.feed_forward(normed_TD), width, eps=self.eps)
        return following.after(x_TD, y_TD, gate2, row_T)


class ImageNetSandwichBlock(SandwichBlock):
    """Next-DiT-ImageNet's: only the norms behind have weights."""

    def __init__(self, config: LuminaConfig) -> None:
        super().__init__(config, None)
        self.attention_norm = RmsWeight(config.hidden_size)
        self.ffn_norm = RmsWeight(config.hidden_size)

    def weights(self) -> tuple[Tensor | None, Tensor, Tensor | None, Tensor]:
        """See the base class."""
        return None, self.attention_norm.weight, None, self.ffn_norm.weight


class TextSandwichBlock(SandwichBlock):
    """Lumina-Next's: norms on both sides have weights."""

    def __init__(self, config: LuminaConfig, caption_channels: int) -> None:
        super().__init__(config, caption_channels)
        self.attention_norm1 = RmsWeight(config.hidden_size)
        self.attention_norm2 = RmsWeight(config.hidden_size)
        self.ffn_norm1 = RmsWeight(config.hidden_size)
        self.ffn_norm2 = RmsWeight(config.hidden_size)

    def weights(self) -> tuple[Tensor | None, Tensor, Tensor | None, Tensor]:
        """See the base class."""
        norms = (self.attention_norm1, self.attention_norm2, self.ffn_norm1, self.ffn_norm2)
        before1, after1, before2, after2 = (norm.weight for norm in norms)
        return before1, after1, before2, after2


def _scaled(gate_SD: Tensor, weight_D: Tensor) -> Tensor:
    return gate_SD.tanh() * weight_D.to(torch.promote_types(weight_D.dtype, torch.float32))


def blocks_of(layers: nn.ModuleList) -> Iterator[FlagBlock | SandwichBlock]:
    """The blocks of a stack, by their type."""
    for layer in layers:
        assert isinstance(layer, FlagBlock | SandwichBlock), layer
        yield layer


def modulation_of(
    layers: nn.ModuleList, final: LuminaFinalLayer, condition_SM: Tensor, row_T: Tensor
) -> Modulation:
    """One modulation row per sequence, block by block."""
    rows = tuple(block.rows(condition_SM) for block in blocks_of(layers))
    return Modulation(rows, final.rows(condition_SM), row_T)


def run_blocks(
    layers: nn.ModuleList,
    final: LuminaFinalLayer,
    x_TD: Tensor,
    modulation: Modulation,
    around: Surroundings,
    captions: CaptionStates | None = None,
) -> Tensor:
    """All blocks and the final layer: embedded tokens [T, D] to predictions [T, P]."""
    blocks, row_T = list(blocks_of(layers)), modulation.row_of_token
    keys: Sequence[CaptionKeys | None] = [None] * len(blocks)
    if captions is not None:
        keys = list(zip(captions.keys, captions.values, strict=True))
    norms = [block.norm_rows(rows) for block, rows in zip(blocks, modulation.blocks, strict=True)]
    norms.append(final.norm_rows(modulation.final))
    normed_TD = norms[0].of(x_TD, row_T)
    for i, block in enumerate(blocks):
        x_TD, normed_TD = block(
            x_TD, normed_TD, modulation.blocks[i], norms[i + 1], row_T, around, keys[i]
        )
    return final(normed_TD)
