"""What a TerDiT is made of, the sizes that have a name, and what was released.

Knows the numbers of a configuration, positions and the order of labels; not how layers are built
or weights are stored.
Sources: TerDiT (arXiv:2405.14854) and the code of Lucky-Lance/TerDiT.

Dimension key: N tokens of a grid, E head dim, L labels.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fit_models.config_values import config_of_values
from fit_models.released.release import Release

LABEL_ORDERS = ("strings", "numbers")
# The original's rotary table has so many rows.
MOST_TOKENS = 4096
_MOST_CONDITION_CHANNELS = 1024


@dataclass(frozen=True)
class TerDiTConfig:
    """A TerDiT network (arXiv:2405.14854): Large-DiT with ternary weights in its blocks.

    Attributes:
        hidden_size: width D of a token inside the network, a multiple of 4 and of `num_heads`.
        depth: number of blocks.
        num_heads: attention heads; the head dim must be even.
        in_channels: latent channels.
        patch_size: side of a patch in latent pixels.
        num_classes: labels; label `num_classes` is the null label of guidance.
        mlp_multiple: the MLP's width is rounded up to a multiple of it.
        norm_eps: of the blocks' RMSNorms and of the one over their modulation.
        qk_norm: whether queries and keys pass a LayerNorm over all heads together; the keys of a
            file tell (`layers.0.attention.q_norm.weight`).
        theta: base of the rotary frequencies.
        trained_grid: tokens a side of the square grid the network was trained with.
        guided_channels: latent channels that guidance changes, 3 of 4 in the original.
        label_order: how the trained labels were numbered. "strings": the released networks were
            trained with class ids sorted as strings (0, 1, 10, 100, 101 ...), and are given the
            usual ids here; "numbers": labels are passed on as they are.
    """

    hidden_size: int
    depth: int
    num_heads: int
    in_channels: int = 4
    patch_size: int = 2
    num_classes: int = 1000
    mlp_multiple: int = 256
    norm_eps: float = 1e-5
    qk_norm: bool = False
    theta: float = 10000.0
    trained_grid: int = 16
    guided_channels: int = 3
    label_order: str = "strings"

    def __post_init__(self) -> None:
        for name in ("hidden_size", "depth", "num_heads", "patch_size", "num_classes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}"
            )
        if self.hidden_size % 4 or self.mlp_multiple < 4 or self.mlp_multiple % 4:
            raise ValueError(
                f"hidden_size {self.hidden_size} and mlp_multiple {self.mlp_multiple} must be "
                "multiples of 4 (ternary weights are packed four rows to a byte)"
            )
        if self.head_dim % 2:
            raise ValueError(f"head dim {self.head_dim} is odd; rotary pairs need an even one")
        if not 0 < self.guided_channels <= self.in_channels:
            raise ValueError(
                f"guided_channels {self.guided_channels} is not in 1..{self.in_channels}"
            )
        if self.label_order not in LABEL_ORDERS:
            raise ValueError(
                f"label_order {self.label_order!r} is unknown; known: {', '.join(LABEL_ORDERS)}"
            )

    @property
    def head_dim(self) -> int:
        """Values per head."""
        return self.hidden_size // self.num_heads

    @property
    def condition_size(self) -> int:
        """Width A of the conditioning vector."""
        return min(self.hidden_size, _MOST_CONDITION_CHANNELS)

    @property
    def mlp_hidden(self) -> int:
        """Width of the gated MLP: two thirds of 4 D, rounded up."""
        return -(-(8 * self.hidden_size // 3) // self.mlp_multiple) * self.mlp_multiple

    @property
    def token_channels(self) -> int:
        """K, values of a token outside the network: channels x patch x patch."""
        return self.in_channels * self.patch_size**2

    @property
    def output_channels(self) -> int:
        """P, values of a token's prediction: noise, then variance."""
        return 2 * self.token_channels

    @property
    def guided_token_channels(self) -> int:
        """Leading values of a token that guidance changes (channels are slowest in a token)."""
        return self.guided_channels * self.patch_size**2

    @property
    def null_label(self) -> int:
        """The label that means "no class"."""
        return self.num_classes

    @property
    def ternary_weights(self) -> int:
        """How many weights are ternary: attention, MLP and modulation of every block."""
        width = self.hidden_size
        block = 4 * width**2 + 3 * width * self.mlp_hidden + 6 * width * self.condition_size
        return self.depth * block

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
    def from_dict(cls, values: Mapping[str, Any]) -> TerDiTConfig:
        """Read what `to_dict` wrote.

        Raises:
            ValueError: a key is unknown, one without default is missing, or a value is refused.
        """
        return config_of_values(cls, values)


def check_size(rows: int, columns: int, config: TerDiTConfig) -> None:
    """Refuse grids the network has no positions for.

    A token's position is its number in the raster, so that the trained row length is part of what
    was learned: other square grids run, and are further from it the more they differ.

    Raises:
        ValueError: the grid is empty, no square, or has more than 4096 tokens.
    """
    grid, side = f"a grid of {rows}x{columns} tokens", int(MOST_TOKENS**0.5)
    if min(rows, columns) < 1:
        raise ValueError(f"{grid} is empty; each side must be 1 to {side}")
    if rows != columns:
        raise ValueError(
            f"{grid} is no square; TerDiT knows square pictures only, and was trained with "
            f"{config.trained_grid}x{config.trained_grid} tokens"
        )
    if rows * columns > MOST_TOKENS:
        raise ValueError(f"{grid} has more than {MOST_TOKENS}; each side may be 1 to {side}")


def position_tables(rows: int, columns: int, config: TerDiTConfig) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotation by the token's number in the raster.

    Returns:
        cos, sin: fp32 [N, E/2], one angle for each adjacent pair; N = rows x columns, row-major.
    """
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    angles = torch.arange(rows * columns, dtype=torch.float32).outer(1.0 / config.theta**exponent)
    return angles.cos(), angles.sin()


@functools.lru_cache(maxsize=16)
def trained_labels(config: TerDiTConfig, device: torch.device) -> Tensor:
    """The label a network was trained with, for each usual class id: int64 [L], the null label's
    included.

    Training sorted its folders, named by class ids, as strings: class 2 became label 112.
    """
    labels = torch.arange(config.num_classes + 1)
    if config.label_order == "strings":
        by_string = sorted(range(config.num_classes), key=str)
        labels[torch.tensor(by_string)] = torch.arange(config.num_classes)
    return labels.to(device)


_600M = TerDiTConfig(hidden_size=1536, depth=16, num_heads=32)
_4B = TerDiTConfig(hidden_size=3072, depth=32, num_heads=32)

NAMED_TERDIT_CONFIGS: dict[str, TerDiTConfig] = {
    "TerDiT-600M/2": _600M,
    "TerDiT-4.2B/2": _4B,
    "TerDiT-4.2B/2-512": replace(_4B, trained_grid=32),
    # The code has this size; no weights were released.
    "TerDiT-7B/2": TerDiTConfig(hidden_size=4096, depth=32, num_heads=32),
}

_LICENCE = "MIT file in the repository; its model files carry DiT's CC-BY-NC-4.0 header"


def _release(name: str, config_name: str) -> Release:
    return Release(
        name=name,
        files=("consolidated_ema_ternary.00-of-01.pth", "model_args.pth"),
        size_bytes=None,  # by the shapes: 175 MB (600M), 1.10 GB (4.2B)
        licence=_LICENCE,
        source="huggingface.co/lucky-lance/TerDiT",
        config_name=config_name,
    )


RELEASES = (
    _release("TerDiT-600M 256x256", "TerDiT-600M/2"),
    _release("TerDiT-4.2B 256x256", "TerDiT-4.2B/2"),
    _release("TerDiT-4.2B 512x512", "TerDiT-4.2B/2-512"),
)
