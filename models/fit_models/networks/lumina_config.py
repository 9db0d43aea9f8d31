"""What every Lumina network's configuration has in common.

Knows widths and heads; not positions, conditions or what a network predicts: each family's own
config adds those. Sources: Lumina-T2X (arXiv:2405.05945), Lumina-Next (arXiv:2406.18583) and the
code of Alpha-VLLM/Lumina-T2X.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from fit_models.config_values import config_of_values
from fit_models.diffusion.shifted_flow import check_shift

_WIDEST_CONDITION = 1024
# The final layer of every Lumina network has a second half of channels; a flow model's are unused.
_FINAL_CHANNELS = 2


@dataclass(frozen=True, kw_only=True)
class LuminaConfig:
    """A Lumina network: width, depth and all that a checkpoint's shapes need.

    Attributes:
        hidden_size: width D of a token inside the network.
        depth: number of blocks.
        num_heads: query heads H; D must be a multiple of it, the head dim a multiple of 4.
        num_kv_heads: key and value heads G, a divisor of H; None for as many.
        in_channels: latent channels.
        patch_size: side of a patch in latent pixels.
        multiple_of: the width of the gated MLP is rounded up to a multiple of it.
        qk_norm: whether queries and keys are normalised, as in every release.
        norm_eps: of the RMS norms.
        guided_channels: latent channels that guidance changes (3 of 4, as in DiT).
    """

    hidden_size: int
    depth: int
    num_heads: int
    num_kv_heads: int | None = None
    in_channels: int = 4
    patch_size: int = 2
    multiple_of: int = 256
    qk_norm: bool = True
    norm_eps: float = 1e-5
    guided_channels: int = 3

    def __post_init__(self) -> None:
        for name in ("hidden_size", "depth", "num_heads", "in_channels", "patch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}"
            )
        if self.head_dim % 4:
            raise ValueError(f"head dim {self.head_dim} is not a multiple of 4 (2-D rotary pairs)")
        if self.key_heads < 1 or self.num_heads % self.key_heads:
            raise ValueError(
                f"num_kv_heads {self.key_heads} does not divide num_heads {self.num_heads}"
            )
        if self.multiple_of < 1:
            raise ValueError(f"multiple_of is {self.multiple_of}; it must be at least 1")
        if not 0 < self.guided_channels <= self.in_channels:
            raise ValueError(
                f"guided_channels {self.guided_channels} is not in 1..{self.in_channels}"
            )

    @property
    def head_dim(self) -> int:
        """Values per head."""
        return self.hidden_size // self.num_heads

    @property
    def key_heads(self) -> int:
        """G, key and value heads."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def condition_size(self) -> int:
        """Width M of the vector that every adaLN projection reads: no more than 1024."""
        return min(self.hidden_size, _WIDEST_CONDITION)

    @property
    def mlp_hidden(self) -> int:
        """F: two thirds of 4 D, rounded up to a multiple of `multiple_of`."""
        return -(-int(2 * 4 * self.hidden_size / 3) // self.multiple_of) * self.multiple_of

    @property
    def token_channels(self) -> int:
        """K, values of a token outside the network: channels x patch x patch."""
        return self.in_channels * self.patch_size**2

    @property
    def final_channels(self) -> int:
        """Latent channels the final layer has weights for, used or not."""
        return _FINAL_CHANNELS * self.in_channels

    @property
    def output_channels(self) -> int:
        """P, values of a token's prediction: those of a velocity are K."""
        return self.token_channels

    @property
    def guided_token_channels(self) -> int:
        """Leading values of a token that guidance changes (channels are slowest in a token)."""
        return self.guided_channels * self.patch_size**2

    def flops_per_token(self, sequence_tokens: int) -> float:
        """Floating-point operations of one token in one evaluation (a multiply-add is two)."""
        width, key_width = self.hidden_size, self.key_heads * self.head_dim
        linear = self.depth * (2 * width * (width + key_width) + 3 * width * self.mlp_hidden)
        attention = self.depth * 2 * sequence_tokens * width
        ends = width * (self.token_channels + self.output_channels)
        return 2.0 * (linear + attention + ends)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for a `config.json`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_dict` wrote.

        Raises:
            ValueError: a key is unknown, one without default is missing, or a value is refused.
        """
        return config_of_values(cls, values)


@dataclass(frozen=True, kw_only=True)
class LuminaTextConfig(LuminaConfig):
    """A Lumina network that is told what to draw by the states of a language model.

    Attributes:
        caption_channels: width C of those states.
        trained_side: tokens a side of the largest square picture it was trained with; larger
            areas have their rotary frequencies stretched.
        proportional_base: tokens at which attention has its usual temperature; None for the usual
            one everywhere (proportional attention, arXiv:2406.18583).
        time_shift: how far its schedule is bent towards noise, see
            `fit_models.diffusion.shifted_flow`; 4 in the authors' demos.
    """

    caption_channels: int
    trained_side: int = 64
    proportional_base: int | None = None
    time_shift: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("caption_channels", "trained_side"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.proportional_base is not None and self.proportional_base < 2:
            raise ValueError(
                f"proportional_base is {self.proportional_base}; it must be at least 2, or None"
            )
        check_shift(self.time_shift)

    @property
    def num_classes(self) -> int:
        """None: it reads captions."""
        return 0

    def caption_flops_per_token(self, caption_tokens: int) -> float:
        """What attention to a caption adds to `flops_per_token`: its keys and values are cached."""
        return 4.0 * self.depth * caption_tokens * self.hidden_size


def check_sides(rows: int, columns: int, config: LuminaConfig, most_tokens: int) -> None:
    """Refuse a grid that has no tokens or is longer on a side than a rotary table.

    Raises:
        ValueError: see above.
    """
    if not (1 <= rows <= most_tokens and 1 <= columns <= most_tokens):
        raise ValueError(
            f"a grid of {rows}x{columns} tokens has no positions; each side must be in "
            f"1..{most_tokens} tokens of {config.patch_size} latent pixels"
        )
