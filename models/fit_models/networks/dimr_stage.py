"""One branch of DiMR: blocks with long skips, by attention or by convolutions.

Names are those of the released files; numbers among them are places in the authors' sequences.
Source: DiMR (arXiv:2406.09416); the attending branch is U-ViT's (arXiv:2209.12152), the convolving
one ConvNeXt's (arXiv:2201.03545).

Dimension key: T packed tokens of this branch, S sequences, R modulation rows, D width, F MLP width,
C latent channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fit_models.networks.dimr_config import DiMRConfig, StageConfig
from fit_models.packed_grids import HeadedSequences, corner_rows, on_maps, shuffle_up
from fit_models.relative_bias import GridRun
from fit_models.timed_norms import Rows, TimedLayerNorm, TimedRMSNorm, TimedVector, timed_rows

_HEAD_KERNEL = 3


@dataclass(frozen=True)
class Place:
    """Where the tokens of a branch lie.

    Attributes:
        runs: grids among the tokens.
        row_T: each token's modulation row.
        headed: the sequences with a class token in front; None in branches without.
    """

    runs: tuple[GridRun, ...]
    row_T: Tensor
    headed: HeadedSequences | None = None


class PlainAttention(nn.Module):
    """Attention behind a timed norm, added to the stream."""

    def __init__(self, config: StageConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_heads
        self.norm = TimedRMSNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.dense = nn.Linear(width, width)

    def forward(self, x_TD: Tensor, rows: Rows, place: Place) -> Tensor:
        """[T, D] -> [T, D]."""
        assert place.headed is not None
        qkv_TD = self.query_key_value(self.norm(x_TD, rows, place.row_T))
        q_THE, k_THE, v_THE = qkv_TD.unflatten(1, (3, self.num_heads, -1)).unbind(1)
        return x_TD + self.dense(place.headed.attend(q_THE, k_THE, v_THE).flatten(1))


class DepthwiseConvolution(nn.ModuleDict):
    """A convolution of each channel with no norm before it, added to the stream."""

    def __init__(self, config: StageConfig) -> None:
        width, side = config.hidden_size, config.kernel_size
        super().__init__({"1": nn.Conv2d(width, width, side, padding=side // 2, groups=width)})

    def forward(self, x_TD: Tensor, rows: Rows, place: Place) -> Tensor:
        """[T, D] -> [T, D]; takes none of the rows."""
        return x_TD + on_maps(x_TD, place.runs, self["1"])


class GatedMLP(nn.Module):
    """w2 (GELU(w0 u) w1 u) of the normed stream u, added to the stream."""

    def __init__(self, config: StageConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.mlp_hidden
        self.norm = TimedRMSNorm(width)
        self.w0 = nn.Linear(width, inner)
        self.w1 = nn.Linear(width, inner)
        self.w2 = nn.Linear(inner, width)

    def forward(self, x_TD: Tensor, rows: Rows, place: Place) -> Tensor:
        """[T, D] -> [T, D]."""
        u_TD = self.norm(x_TD, rows, place.row_T)
        return x_TD + self.w2(F.gelu(self.w0(u_TD)) * self.w1(u_TD))


class StageBlock(nn.Module):
    """Tokens exchange, then each goes through the MLP."""

    def __init__(self, config: StageConfig) -> None:
        super().__init__()
        self.block1 = PlainAttention(config) if config.num_heads else DepthwiseConvolution(config)
        self.block2 = GatedMLP(config)

    def forward(self, x_TD: Tensor, rows: Rows, place: Place) -> Tensor:
        """[T, D] -> [T, D]."""
        return self.block2(self.block1(x_TD, rows, place), rows, place)


class PositionTable(nn.Module):
    """A learned vector for every place of the trained grid."""

    def __init__(self, side: int, width: int) -> None:
        super().__init__()
        self.side = side
        self.position_embeddings = nn.Embedding(side * side, width)

    def forward(self, runs: Sequence[GridRun]) -> Tensor:
        """[T, D] for tokens of grids that are corners of the trained one."""
        return corner_rows(self.position_embeddings.weight, self.side, self.side, runs)


class UpsamplingKernel(nn.Module):
    """One linear layer under the authors' name."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.kernel = nn.Linear(inputs, outputs)


class Stage(nn.Module):
    """Latent tokens of its own patch size, and the features of the coarser branch, to features."""

    def __init__(self, config: StageConfig, whole: DiMRConfig, coarser: StageConfig | None) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        conv = nn.Conv2d(whole.in_channels, width, patch, stride=patch)
        positions = PositionTable(whole.latent_size // patch, width)
        self.input_layer = nn.ModuleDict({"1": conv, "3": positions})
        if coarser is None:
            self.class_embeds = nn.Embedding(whole.num_classes + 1, width)
        else:
            joined = coarser.feature_channels
            self.upsample = nn.ModuleDict(
                {
                    "0": TimedLayerNorm(joined),
                    "1": UpsamplingKernel(joined, 4 * width),
                    "2": TimedLayerNorm(width),
                }
            )
        skips = config.num_skips
        self.blocks = nn.ModuleList(StageBlock(config) for _ in range(2 * skips + 1))
        self.skip_denses = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(skips))
        head = nn.Conv2d(width, whole.in_channels, _HEAD_KERNEL, padding=_HEAD_KERNEL // 2)
        self.output_layer = nn.ModuleDict({"0": TimedLayerNorm(width), "2": head})
        self.row_widths = [len(vector.param0) for vector in self.timed()]

    def timed(self) -> list[TimedVector]:
        """All vectors that move with time, in the order of use."""
        return [module for module in self.modules() if isinstance(module, TimedVector)]

    def modulate(self, tau_R1: Tensor) -> Tensor:
        """Their rows side by side, [R, M]."""
        return timed_rows(self.timed(), tau_R1)

    def rows(self, modulation_RM: Tensor) -> Rows:
        """`modulate`'s rows one vector after the other."""
        return iter(modulation_RM.split(self.row_widths, dim=1))

    def embed(self, tokens_TK: Tensor, runs: Sequence[GridRun]) -> Tensor:
        """Latent tokens of this patch size, channels slowest, to [T, D] with positions."""
        conv = self.input_layer["1"]
        assert isinstance(conv, nn.Conv2d)
        x_TD = F.linear(tokens_TK, conv.weight.flatten(1), conv.bias)
        return x_TD + self.input_layer["3"](runs)

    def raised(self, coarse: Sequence[Tensor], rows: Rows, below: Place, row_T: Tensor) -> Tensor:
        """All features of the coarser branch, [T / 4, D'] each, to [T, D] of this one.

        Args:
            coarse: its features.
            rows: this branch's; four are taken.
            below: where the coarser tokens lie.
            row_T: rows of this branch's tokens.
        """
        norm, kernel, last = self.upsample["0"], self.upsample["1"], self.upsample["2"]
        assert isinstance(norm, TimedLayerNorm)
        assert isinstance(kernel, UpsamplingKernel)
        joined_TW = norm.joined(coarse, rows, below.row_T)
        return last(shuffle_up(kernel.kernel(joined_TW), below.runs), rows, row_T)

    def features(
        self, x_TD: Tensor, class_SD: Tensor | None, rows: Rows, place: Place
    ) -> list[Tensor]:
        """The embedding and what every block gives, [T, D] each; the last one is the branch's end.

        Args:
            x_TD: `embed`'s tokens, with `raised` added where there is a coarser branch.
            class_SD: one token for each sequence, in front of its grid; None in finer branches.
            rows: one for each norm, in order.
            place: where the tokens lie; with `headed` for the class token.
        """
        headed = place.headed
        if headed is not None:
            assert class_SD is not None
            x_TD = headed.prepend(x_TD, class_SD)
            first_S = place.row_T[headed.cu_seqlens[:-1].long()]
            place = replace(
                place, row_T=headed.prepend(place.row_T[:, None], first_S[:, None])[:, 0]
            )
        given, stack, half = [x_TD], [], len(self.skip_denses)
        for i, block in enumerate(self.blocks):
            if i > half:
                joined_TD = torch.cat((x_TD, stack.pop()), dim=1)
                x_TD = self.skip_denses[i - half - 1](joined_TD)
            x_TD = block(x_TD, rows, place)
            given.append(x_TD)
            if i < half:
                stack.append(x_TD)
        return given if headed is None else [headed.drop(x) for x in given]

    def head(self, x_TD: Tensor, rows: Rows, place: Place) -> Tensor:
        """The branch's own prediction of noise, [T, C]; two of the rows are taken."""
        normed_TD = self.output_layer["0"](x_TD, rows, place.row_T)
        return on_maps(normed_TD, place.runs, self.output_layer["2"])
