"""What a latent DiffiT is made of, the sizes that have a name, and what was released.

Sources: DiffiT (arXiv:2312.02139) and its released code. The paper says 30 blocks; the released
networks have 28, which is what its count of parameters says too.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from fit_models.config_values import config_of_values
from fit_models.released.release import Release
from fit_models.sincos import sincos_table

# Above this latent the released code guides with a constant scale, up to it with a power-cosine.
LARGEST_POWER_COSINE_LATENT = 32
GUIDANCE_POWER = 4.0


@dataclass(frozen=True)
class DiffiTConfig:
    """A latent DiffiT: time and label enter queries and values, offsets enter the scores.

    Attributes:
        hidden_size: width D, a multiple of 4.
        depth: number of blocks.
        num_heads: attention heads; D must be a multiple of it.
        latent_size: side of the latent it was trained on; bias tables are tied to it.
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
    def guidance_power(self) -> float:
        """Power of the power-cosine course of guidance; 0 is constant."""
        return GUIDANCE_POWER if self.latent_size <= LARGEST_POWER_COSINE_LATENT else 0.0

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
        attention = self.depth * 2 * sequence_tokens * width
        ends = width * (self.token_channels + self.output_channels)
        return 2.0 * (linear + attention + ends)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for a `config.json`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DiffiTConfig:
        """Read what `to_dict` wrote.

        Raises:
            ValueError: a key is unknown or one without default is missing.
        """
        return config_of_values(cls, values)


def position_tables(rows: int, columns: int, config: DiffiTConfig) -> tuple[Tensor, Tensor]:
    """Vectors added to a grid's embedded tokens: fp32 [N, D], and an empty [N, 0]."""
    table = sincos_table(rows, columns, config.hidden_size)
    return table, table.new_empty(rows * columns, 0)


def check_size(rows: int, columns: int, config: DiffiTConfig) -> None:
    """Refuse grids other than the trained one: biases were learned for its offsets alone.

    Raises:
        ValueError: the grid is another.
    """
    if (rows, columns) != (config.side, config.side):
        side, latent = config.side, config.latent_size
        raise ValueError(
            f"a grid of {rows}x{columns} tokens: this DiffiT was trained on {side}x{side} alone "
            f"(latents of {latent}x{latent}, pictures of {8 * latent}x{8 * latent} pixels)"
        )


NAMED_DIFFIT_CONFIGS: dict[str, DiffiTConfig] = {
    "DiffiT-XL/2-256": DiffiTConfig(1152, 28, 16),
    "DiffiT-XL/2-512": DiffiTConfig(1152, 28, 16, latent_size=64),
}

_SOURCE = "https://huggingface.co/nvidia/DiffiT"
_LICENCE = "CC-BY-NC-SA-4.0 (repository) or NSCLv1 (hub card): non-commercial both"
RELEASES: tuple[Release, ...] = (
    Release("DiffiT 256", ("diffit_256.safetensors",), None, _LICENCE, _SOURCE, "DiffiT-XL/2-256"),
    Release("DiffiT 512", ("diffit_512.safetensors",), None, _LICENCE, _SOURCE, "DiffiT-XL/2-512"),
)
