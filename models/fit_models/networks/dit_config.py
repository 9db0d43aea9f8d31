"""What a DiT or SiT is made of, the sizes that have a name, and what was released.

Knows the numbers of a configuration; not how layers are built or weights are stored. SiT is DiT's
network with another objective (arXiv:2401.08740), and diffusers' port is DiT's with two numbers
changed: both are fields here.
Sources: DiT (arXiv:2212.09748), SiT, and the code of facebookresearch/DiT, willisma/SiT and
huggingface/diffusers.

Dimension key: N tokens of a grid, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fit_models.config_values import config_of_values
from fit_models.released.release import Release
from fit_models.sincos import sincos_table

PREDICTIONS = ("noise", "velocity")
POSITIONS = ("integer", "rescaled")


@dataclass(frozen=True)
class DiTConfig:
    """A DiT network (arXiv:2212.09748): width, depth and all that a checkpoint's shapes need.

    Attributes:
        hidden_size: width D of a token inside the network, a multiple of 4 and of `num_heads`.
        depth: number of blocks.
        num_heads: attention heads.
        in_channels: latent channels.
        patch_size: side of a patch in latent pixels.
        num_classes: labels; label `num_classes` is the null label of guidance.
        mlp_ratio: width of the MLP over D.
        learned_variance: whether the final layer has a second half of channels. DiT's are where
            the variance lies in its range (arXiv:2102.09672); SiT's are there and not used.
        prediction: "noise" (DiT) at a raw timestep 0..999, or "velocity" (SiT), data minus noise,
            at t in [0, 1] from noise to data.
        trained_grid: tokens a side of the square grid the network was trained with.
        positions: "integer" counts tokens whatever the grid, as the original would; "rescaled"
            spans the trained extent with any grid, as diffusers' port does.
        frequency_divisor: of the exponents of the timestep's 128 frequencies: 128 in the
            original, 127 in diffusers' port.
        mlp_norm_eps: of the LayerNorm before each MLP: 1e-6 in the original, 1e-5 in the port.
        guided_channels: latent channels that guidance changes: 3 of 4 in the originals, all in
            the port.
    """

    hidden_size: int
    depth: int
    num_heads: int
    in_channels: int = 4
    patch_size: int = 2
    num_classes: int = 1000
    mlp_ratio: float = 4.0
    learned_variance: bool = True
    prediction: str = "noise"
    trained_grid: int = 16
    positions: str = "integer"
    frequency_divisor: int = 128
    mlp_norm_eps: float = 1e-6
    guided_channels: int = 3

    def __post_init__(self) -> None:
        if self.num_heads < 1 or self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}"
            )
        if self.hidden_size % 4:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of 4 (positions of two axes)"
            )
        if not 0 < self.guided_channels <= self.in_channels:
            raise ValueError(
                f"guided_channels {self.guided_channels} is not in 1..{self.in_channels}"
            )
        if self.prediction not in PREDICTIONS:
            raise ValueError(
                f"prediction {self.prediction!r} is unknown; known: {', '.join(PREDICTIONS)}"
            )
        if self.positions not in POSITIONS:
            raise ValueError(
                f"positions {self.positions!r} is unknown; known: {', '.join(POSITIONS)}"
            )
        for name in ("depth", "trained_grid", "frequency_divisor", "patch_size", "num_classes"):
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
    def final_channels(self) -> int:
        """Latent channels of the final layer, those of a learned variance included."""
        return 2 * self.in_channels if self.learned_variance else self.in_channels

    @property
    def output_channels(self) -> int:
        """P, values of a token's prediction: K, or 2 K where a variance is predicted too."""
        both = self.learned_variance and self.prediction == "noise"
        return 2 * self.token_channels if both else self.token_channels

    @property
    def guided_token_channels(self) -> int:
        """Leading values of a token that guidance changes (channels are slowest in a token)."""
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
        attention = self.depth * 2 * sequence_tokens * width
        ends = width * (self.in_channels + self.final_channels) * self.patch_size**2
        return 2.0 * (linear + attention + ends)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for a `config.json`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DiTConfig:
        """Read what `to_dict` wrote.

        Raises:
            ValueError: a key is unknown, one without default is missing, or a value is refused.
        """
        return config_of_values(cls, values)


def check_size(rows: int, columns: int, config: DiTConfig) -> None:
    """Any grid will do, since positions are closed forms; far from the trained one, less well.

    Raises:
        ValueError: the grid has no tokens.
    """
    if rows < 1 or columns < 1:
        p = config.patch_size
        raise ValueError(
            f"a grid of {rows}x{columns} tokens is empty; latent height and width must be "
            f"positive multiples of the patch size {p}"
        )


def position_tables(rows: int, columns: int, config: DiTConfig) -> tuple[Tensor, Tensor]:
    """What is added to each embedded token of a grid.

    Returns:
        the sine-cosine table, fp32 [N, D], and nothing, [N, 0]; N = rows x columns, row-major.
    """
    trained = config.trained_grid if config.positions == "rescaled" else None
    return sincos_table(rows, columns, config.hidden_size, trained), torch.empty(rows * columns, 0)


def as_diffusers(config: DiTConfig) -> DiTConfig:
    """The same network as diffusers' port computes it."""
    return replace(
        config,
        positions="rescaled",
        frequency_divisor=127,
        mlp_norm_eps=1e-5,
        guided_channels=config.in_channels,
    )


_LATENT_SIDE = 32  # 256 pixels through an autoencoder of factor 8
_SHAPES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16)}


def _named_sizes() -> dict[str, DiTConfig]:
    sizes = {}
    for family, prediction in (("DiT", "noise"), ("SiT", "velocity")):
        for letter, (width, depth, heads) in _SHAPES.items():
            for patch in (2, 4, 8):
                sizes[f"{family}-{letter}/{patch}"] = DiTConfig(
                    hidden_size=width,
                    depth=depth,
                    num_heads=heads,
                    patch_size=patch,
                    prediction=prediction,
                    trained_grid=_LATENT_SIDE // patch,
                )
    sizes["DiT-XL/2-512"] = replace(sizes["DiT-XL/2"], trained_grid=32)
    for name in ("DiT-XL/2", "DiT-XL/2-512"):
        sizes[f"{name}-diffusers"] = as_diffusers(sizes[name])
    return sizes


NAMED_DIT_CONFIGS: dict[str, DiTConfig] = _named_sizes()

RELEASES = (
    Release(
        name="DiT-XL/2 256x256",
        files=("DiT-XL-2-256x256.pt",),
        size_bytes=None,  # 675,129,632 fp32 values: about 2.70 GB
        licence="CC-BY-NC-4.0",
        source="https://dl.fbaipublicfiles.com/DiT/models/DiT-XL-2-256x256.pt",
        config_name="DiT-XL/2",
    ),
    Release(
        name="DiT-XL/2 512x512",
        files=("DiT-XL-2-512x512.pt",),
        size_bytes=None,  # 676,014,368 fp32 values: about 2.70 GB
        licence="CC-BY-NC-4.0",
        source="https://dl.fbaipublicfiles.com/DiT/models/DiT-XL-2-512x512.pt",
        config_name="DiT-XL/2-512",
    ),
    Release(
        name="DiT-XL-2-256",
        files=("transformer/diffusion_pytorch_model.bin",),
        size_bytes=None,  # 3 GB: every block has a copy of the embedders
        licence="CC-BY-NC-4.0",
        source="huggingface.co/facebook/DiT-XL-2-256",
        config_name="DiT-XL/2-diffusers",
    ),
    Release(
        name="DiT-XL-2-512",
        files=("transformer/diffusion_pytorch_model.bin",),
        size_bytes=None,
        licence="CC-BY-NC-4.0",
        source="huggingface.co/facebook/DiT-XL-2-512",
        config_name="DiT-XL/2-512-diffusers",
    ),
    Release(
        name="SiT-XL/2 256x256",
        files=("SiT-XL-2-256.pt",),
        size_bytes=None,
        licence="as in the LICENSE file of willisma/SiT",
        source="github.com/willisma/SiT (download.py)",
        config_name="SiT-XL/2",
    ),
)
