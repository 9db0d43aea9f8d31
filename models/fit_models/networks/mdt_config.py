"""What an MDT is made of, the sizes that have a name, and what was released.

Sources: MDT (arXiv:2303.14389, v1 and v2) and its released code.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from fit_models.config_values import config_of_values
from fit_models.position_table import corner_positions
from fit_models.released.release import Release

# Rows at the end of MDT's bias tables that no offset points to (BEiT kept them for a class token).
UNUSED_BIAS_ROWS = 3
# Power of the power-cosine guidance of the published figures.
GUIDANCE_POWER = 4.0


@dataclass(frozen=True)
class MDTConfig:
    """An MDT: a DiT whose attention has a bias for each offset, with decoder blocks at its end.

    Attributes:
        hidden_size: width D.
        depth: number of blocks, the side block of training not counted.
        num_heads: attention heads; D must be a multiple of it.
        decode_layer: how many of the blocks are decoder blocks.
        version: 1 is a plain stack; 2 has long skips (in-blocks, out-blocks, decoder blocks).
        latent_size: side of the latent it was trained on; positions and biases are tied to it.
        in_channels: latent channels.
        patch_size: side of a patch in latent pixels.
        num_classes: labels; label `num_classes` is the null label of guidance.
        mlp_ratio: MLP width over D.
        learned_variance: predict a variance for each noise value too.
        guided_channels: latent channels that guidance changes.
    """

    hidden_size: int
    depth: int
    num_heads: int
    decode_layer: int
    version: int = 2
    latent_size: int = 32
    in_channels: int = 4
    patch_size: int = 2
    num_classes: int = 1000
    mlp_ratio: float = 4.0
    learned_variance: bool = True
    guided_channels: int = 3

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads or self.hidden_size % 4:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads} "
                "and of 4"
            )
        if self.version not in (1, 2):
            raise ValueError(f"version is {self.version}; MDT has 1 and 2")
        if not 0 < self.decode_layer < self.depth:
            raise ValueError(f"decode_layer {self.decode_layer} is not in 1..{self.depth - 1}")
        if self.version == 2 and (self.depth - self.decode_layer) % 2:
            raise ValueError(
                f"depth {self.depth} less decode_layer {self.decode_layer} is odd; version 2 has "
                "as many in-blocks as out-blocks"
            )
        if self.latent_size % self.patch_size:
            raise ValueError(
                f"latent_size {self.latent_size} is not a multiple of patch_size {self.patch_size}"
            )
        if not 0 < self.guided_channels <= self.in_channels:
            raise ValueError(
                f"guided_channels {self.guided_channels} is not in 1..{self.in_channels}"
            )

    @property
    def head_dim(self) -> int:
        """Values per head."""
        return self.hidden_size // self.num_heads

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
        """P: K of noise and, with learned variance, K of variance behind it."""
        return self.token_channels * (2 if self.learned_variance else 1)

    @property
    def guided_token_channels(self) -> int:
        """Leading values of a token that guidance changes."""
        return self.guided_channels * self.patch_size**2

    @property
    def mlp_hidden(self) -> int:
        """Width of the MLP."""
        return int(self.hidden_size * self.mlp_ratio)

    @property
    def null_label(self) -> int:
        """The label that means "no class"."""
        return self.num_classes

    def flops_per_token(self, sequence_tokens: int) -> float:
        """Floating-point operations of one token in one evaluation (a multiply-add is two)."""
        width = self.hidden_size
        linear = self.depth * (4 * width**2 + 2 * width * self.mlp_hidden)
        if self.version == 2:
            linear += (self.depth + self.decode_layer) // 2 * 2 * width**2  # skip_linear
        attention = self.depth * 2 * sequence_tokens * width
        ends = width * (self.token_channels + self.output_channels)
        return 2.0 * (linear + attention + ends)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for a `config.json`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> MDTConfig:
        """Read what `to_dict` wrote.

        Raises:
            ValueError: a key is unknown or one without default is missing.
        """
        return config_of_values(cls, values)


def position_tables(rows: int, columns: int, config: MDTConfig) -> tuple[Tensor, Tensor]:
    """Rows of the two learned tables for a grid: fp32 [N, 1] of whole numbers and [N, 0].

    Raises:
        ValueError: the grid is larger than the trained one.
    """
    return corner_positions(rows, columns, config.side)


def check_size(rows: int, columns: int, config: MDTConfig) -> None:
    """Refuse grids other than the trained one: positions and biases were learned for that alone.

    Raises:
        ValueError: the grid is another.
    """
    if (rows, columns) != (config.side, config.side):
        side, latent = config.side, config.latent_size
        raise ValueError(
            f"a grid of {rows}x{columns} tokens: this MDT was trained on {side}x{side} alone "
            f"(latents of {latent}x{latent}, pictures of {8 * latent}x{8 * latent} pixels)"
        )


NAMED_MDT_CONFIGS: dict[str, MDTConfig] = {
    "MDT-XL/2": MDTConfig(1152, 28, 16, decode_layer=2, version=1),
    "MDTv2-XL/2": MDTConfig(1152, 28, 16, decode_layer=4),
    "MDTv2-S/2": MDTConfig(384, 12, 6, decode_layer=6),
}

_SOURCE = "https://huggingface.co/shgao/MDT-XL2"
_LICENCE = "Apache-2.0 (code derived from DiT's, which is CC-BY-NC-4.0)"
RELEASES: tuple[Release, ...] = (
    Release("MDT-XL/2", ("mdt_xl2_v1_ckpt.pt",), None, _LICENCE, _SOURCE, "MDT-XL/2"),
    Release("MDTv2-XL/2", ("mdt_xl2_v2_ckpt.pt",), None, _LICENCE, _SOURCE, "MDTv2-XL/2"),
)
