"""What a FiT (version 1) is made of, the sizes that have a name, and what was released.

Knows the numbers of a configuration; not how layers are built or weights are stored.
Source: FiT (arXiv:2402.12376) and its released configuration.

Dimension key: N tokens of a grid, E head dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from fit_models.config import RopeConfig
from fit_models.config_values import config_of_values
from fit_models.released.release import Release
from fit_models.rope import rope_table


@dataclass(frozen=True)
class FiTv1Config:
    """A FiT network (arXiv:2402.12376): width, depth and all that a checkpoint's shapes need.

    Attributes:
        hidden_size: width D of a token inside the network.
        depth: number of blocks.
        num_heads: attention heads; D must be a multiple of it, the head dim a multiple of 4.
        in_channels: latent channels.
        patch_size: side of a patch in latent pixels.
        num_classes: labels; label `num_classes` is the null label of guidance.
        mlp_ratio: width of the gated MLP over D, all of it (FiTv2 keeps two thirds).
        learned_variance: whether the prediction has a second half of channels that says where the
            variance lies in its range (arXiv:2102.09672).
        guided_channels: latent channels that guidance changes (3 of 4).
        rope: rotary embedding.
    """

    hidden_size: int
    depth: int
    num_heads: int
    in_channels: int = 4
    patch_size: int = 2
    num_classes: int = 1000
    mlp_ratio: float = 4.0
    learned_variance: bool = True
    guided_channels: int = 3
    rope: RopeConfig = field(default_factory=RopeConfig)

    def __post_init__(self) -> None:
        if self.num_heads < 1 or self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}"
            )
        if self.head_dim % 4:
            raise ValueError(f"head dim {self.head_dim} is not a multiple of 4 (2-D rotary pairs)")
        if not 0 < self.guided_channels <= self.in_channels:
            raise ValueError(
                f"guided_channels {self.guided_channels} is not in 1..{self.in_channels}"
            )
        for name in ("depth", "patch_size", "num_classes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")

    @property
    def head_dim(self) -> int:
        """Values per head."""
        return self.hidden_size // self.num_heads

    @property
    def token_channels(self) -> int:
        """K, values of a token outside the network: channels x patch x patch."""
        return self.in_channels * self.patch_size**2

    @property
    def output_channels(self) -> int:
        """P, values of a token's prediction: K of the noise, then K of the variance if learned."""
        return 2 * self.token_channels if self.learned_variance else self.token_channels

    @property
    def guided_token_channels(self) -> int:
        """Leading values of a token that guidance changes (channels are slowest in a token)."""
        return self.guided_channels * self.patch_size**2

    @property
    def mlp_hidden(self) -> int:
        """Width of the gated MLP."""
        return int(self.hidden_size * self.mlp_ratio)

    @property
    def null_label(self) -> int:
        """The label that means "no class"."""
        return self.num_classes

    def flops_per_token(self, sequence_tokens: int) -> float:
        """Floating-point operations of one token in one evaluation (a multiply-add is two)."""
        width = self.hidden_size
        linear = self.depth * (4 * width**2 + 3 * width * self.mlp_hidden)
        attention = self.depth * 2 * sequence_tokens * width
        ends = width * (self.token_channels + self.output_channels)
        return 2.0 * (linear + attention + ends)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for a `config.json`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FiTv1Config:
        """Read what `to_dict` wrote.

        Raises:
            ValueError: a key is unknown, one without default is missing, or a value is refused.
        """
        return config_of_values(cls, values)


def check_size(rows: int, columns: int, config: FiTv1Config) -> None:
    """Any grid will do.

    Raises:
        ValueError: the grid has no tokens.
    """
    if rows < 1 or columns < 1:
        raise ValueError(
            f"a grid of {rows}x{columns} tokens is empty; latent height and width must be "
            f"positive multiples of the patch size {config.patch_size}"
        )


def position_tables(rows: int, columns: int, config: FiTv1Config) -> tuple[Tensor, Tensor]:
    """Cosines and sines of a grid's tokens, fp32 [N, E/2] each, N row-major."""
    return rope_table(rows, columns, config.head_dim, config.rope)


NAMED_FITV1_CONFIGS: dict[str, FiTv1Config] = {
    "FiT-B/2": FiTv1Config(hidden_size=768, depth=12, num_heads=12),
    "FiT-XL/2": FiTv1Config(hidden_size=1152, depth=28, num_heads=16),
}

RELEASES = (
    Release(
        name="FiT-XL/2",
        files=("FiTv1_xl/model_ema.bin",),
        size_bytes=None,  # 823,599,392 fp32 values: about 3.29 GB
        licence="not stated; the code is Apache-2.0",
        source="huggingface.co/InfImagine/FiT",
        config_name="FiT-XL/2",
    ),
)
