"""What a DiMR is made of, the sizes that have a name, and what was released.

Sources: DiMR (arXiv:2406.09416) and its released code and configurations. No configuration of three
stages was released: the one here is the one that gives the paper's count of parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fit_models.config_values import config_of_values
from fit_models.released.release import Release


@dataclass(frozen=True)
class StageConfig:
    """One branch: a stack of blocks with long skips on a grid of its own.

    Attributes:
        hidden_size: width D of the branch.
        mlp_hidden: width of the gated MLP.
        num_blocks: as configured by the authors: 2 (n // 2) + 1 blocks are built.
        patch_size: side of its patches in latent pixels.
        num_heads: attention heads, for the first stage; 0 for the others, which convolve.
        kernel_size: side of the depthwise convolutions of the others.
    """

    hidden_size: int
    mlp_hidden: int
    num_blocks: int
    patch_size: int
    num_heads: int = 0
    kernel_size: int = 7

    @property
    def num_skips(self) -> int:
        """Long skips: blocks in front of the middle one, and behind it."""
        return self.num_blocks // 2

    @property
    def feature_channels(self) -> int:
        """Channels of all its features side by side: the embedding and what every block gives."""
        return (2 * self.num_skips + 2) * self.hidden_size

    @property
    def block_macs(self) -> float:
        """Multiply-adds of one of its tokens in linear layers and convolutions of all blocks."""
        width = self.hidden_size
        mixing = 4 * width**2 if self.num_heads else width * self.kernel_size**2
        block = mixing + 3 * width * self.mlp_hidden
        return (2 * self.num_skips + 1) * block + self.num_skips * 2 * width**2


@dataclass(frozen=True)
class DiMRConfig:
    """A cascade of branches, each twice as fine as the one before.

    Attributes:
        stages: from coarse to fine; the first attends, the others convolve, the last has patch 1.
        latent_size: side of the latent it was trained on; position tables are tied to it.
        in_channels: latent channels.
        num_classes: labels; label `num_classes` is the null label of guidance.
        guided_channels: latent channels that guidance changes.
    """

    stages: tuple[StageConfig, ...]
    latent_size: int = 32
    in_channels: int = 4
    num_classes: int = 1000
    guided_channels: int = 4

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("stages is empty; a DiMR has at least one")
        first, *others = self.stages
        if first.num_heads < 1 or first.hidden_size % first.num_heads:
            raise ValueError(
                f"stages[0]: hidden_size {first.hidden_size} is not a multiple of num_heads "
                f"{first.num_heads}"
            )
        if any(stage.num_heads for stage in others):
            raise ValueError("num_heads must be 0 in all stages but the first: they convolve")
        patches = [stage.patch_size for stage in self.stages]
        if patches[-1] != 1 or any(a != 2 * b for a, b in pairwise(patches)):
            raise ValueError(f"patch sizes {patches} must halve from stage to stage and end with 1")
        if self.latent_size % first.patch_size:
            raise ValueError(
                f"latent_size {self.latent_size} is not a multiple of patch_size {patches[0]}"
            )
        if not 0 < self.guided_channels <= self.in_channels:
            raise ValueError(
                f"guided_channels {self.guided_channels} is not in 1..{self.in_channels}"
            )

    @property
    def hidden_size(self) -> int:
        """Width of the first stage."""
        return self.stages[0].hidden_size

    @property
    def head_dim(self) -> int:
        """Values per head of the first stage."""
        return self.hidden_size // self.stages[0].num_heads

    @property
    def patch_size(self) -> int:
        """Side of a token's patch: the first stage's."""
        return self.stages[0].patch_size

    @property
    def side(self) -> int:
        """Tokens per side of the trained grid."""
        return self.latent_size // self.patch_size

    @property
    def token_channels(self) -> int:
        """K: channels x patch x patch."""
        return self.in_channels * self.patch_size**2

    @property
    def output_channels(self) -> int:
        """P: K of noise; no variance is learned."""
        return self.token_channels

    @property
    def guided_token_channels(self) -> int:
        """Leading values of a token that guidance changes."""
        return self.guided_channels * self.patch_size**2

    @property
    def null_label(self) -> int:
        """The label that means "no class"."""
        return self.num_classes

    def flops_per_token(self, sequence_tokens: int) -> float:
        """Floating-point operations of one token in one evaluation (a multiply-add is two)."""
        first = self.stages[0]
        width, tokens = first.hidden_size, sequence_tokens + 1  # and the class
        attention = (2 * first.num_skips + 1) * 2 * tokens * width
        macs = (first.block_macs + attention) * tokens / sequence_tokens
        for coarse, stage in pairwise(self.stages):
            macs += coarse.feature_channels * 4 * stage.hidden_size * _per_token(self, coarse)
            macs += stage.block_macs * _per_token(self, stage)
        for stage in self.stages:
            cut = self.in_channels * stage.patch_size**2 * stage.hidden_size
            macs += cut * _per_token(self, stage)
        macs += 9 * self.in_channels * self.stages[-1].hidden_size * self.patch_size**2
        return 2.0 * macs

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for a `config.json`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DiMRConfig:
        """Read what `to_dict` wrote, or JSON made of it.

        Raises:
            ValueError: a key is unknown or one without default is missing.
        """
        stages = values.get("stages")
        if isinstance(stages, list | tuple):
            read = tuple(
                config_of_values(StageConfig, stage) if isinstance(stage, Mapping) else stage
                for stage in stages
            )
            values = {**values, "stages": read}
        return config_of_values(cls, values)


def _per_token(config: DiMRConfig, stage: StageConfig) -> int:
    """Tokens of a stage for each of the first."""
    return (config.patch_size // stage.patch_size) ** 2


def position_tables(rows: int, columns: int, config: DiMRConfig) -> tuple[Tensor, Tensor]:
    """Nothing, [N, 0] twice: every stage takes positions from its own table by `layout.grids`.

    Raises:
        ValueError: the grid is larger than the trained one.
    """
    check_size(rows, columns, config)
    return torch.empty(rows * columns, 0), torch.empty(rows * columns, 0)


def check_size(rows: int, columns: int, config: DiMRConfig) -> None:
    """Refuse grids beyond the trained one; smaller ones run, as corners of it, and look worse.

    Raises:
        ValueError: there are no rows or columns, or more than the position tables have.
    """
    side = config.side
    if not (1 <= rows <= side and 1 <= columns <= side):
        latent = config.latent_size
        raise ValueError(
            f"a grid of {rows}x{columns} tokens: this DiMR has positions for 1x1 to {side}x{side} "
            f"(latents of up to {latent}x{latent}, pictures of {8 * latent}x{8 * latent} pixels)"
        )


_XL = StageConfig(960, 1920, 39, patch_size=2, num_heads=16)
NAMED_DIMR_CONFIGS: dict[str, DiMRConfig] = {
    "DiMR-XL/2R": DiMRConfig((_XL, StageConfig(480, 960, 20, patch_size=1))),
    "DiMR-G/2R": DiMRConfig(
        (
            StageConfig(1152, 2304, 57, patch_size=2, num_heads=16),
            StageConfig(576, 1152, 29, patch_size=1),
        )
    ),
    "DiMR-XL/3R": DiMRConfig(
        (
            StageConfig(960, 1920, 39, patch_size=4, num_heads=16),
            StageConfig(480, 960, 20, patch_size=2),
            StageConfig(240, 480, 20, patch_size=1),
        ),
        latent_size=64,
    ),
}

_SOURCE = "https://huggingface.co/QHL067/DiMR"
_LICENCE = "Apache-2.0 (code); README: models for research only"
RELEASES: tuple[Release, ...] = (
    Release("DiMR-XL/2R", ("DiMR-XL_2R_800epochs.pth",), None, _LICENCE, _SOURCE, "DiMR-XL/2R"),
    Release("DiMR-G/2R", ("DiMR-G_2R_800epochs.pth",), None, _LICENCE, _SOURCE, "DiMR-G/2R"),
)
