"""What a network is made of, and the sizes that have a name.

Knows the numbers of a configuration; not how layers are built or weights are stored.
Sources: FiT (arXiv:2402.12376), FiTv2 (arXiv:2410.13925) and their released configurations.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

ROPE_MODES = (
    "normal",
    "linear",
    "ntk-aware",
    "ntk-by-parts",
    "yarn",
    "ntk-aware-pro1",
    "ntk-aware-pro2",
)


@dataclass(frozen=True)
class RopeConfig:
    """How rotary frequencies are made, and stretched to grids larger than the trained ones.

    Attributes:
        mode: one of `ROPE_MODES`.
        decouple: stretch each axis by its own length (VisionNTK, VisionYaRN), not by the longer.
        ori_max_pe_len: tokens per axis the network was trained with.
        theta: base of the frequencies.
    """

    mode: str = "normal"
    decouple: bool = False
    ori_max_pe_len: int = 16
    theta: float = 10000.0

    def __post_init__(self) -> None:
        if self.mode not in ROPE_MODES:
            raise ValueError(f"rope mode {self.mode!r} is unknown; known: {', '.join(ROPE_MODES)}")
        if self.ori_max_pe_len < 1:
            raise ValueError(f"ori_max_pe_len is {self.ori_max_pe_len}; it must be at least 1")


@dataclass(frozen=True)
class ModelConfig:
    """A FiTv2 network (arXiv:2410.13925): width, depth and all that a checkpoint's shapes need.

    Attributes:
        hidden_size: width D of a token inside the network.
        depth: number of blocks.
        num_heads: attention heads; D must be a multiple of it, the head dim a multiple of 4.
        adaln_lora_dim: rank of the per-block adaLN projection.
        in_channels: latent channels.
        patch_size: side of a patch in latent pixels.
        num_classes: labels; label `num_classes` is the null label of guidance.
        mlp_ratio: nominal MLP width over D; SwiGLU keeps two thirds of it.
        time_shifting: `s` of t' = s t / (1 + (s - 1) t), 1 in every released model.
        guided_channels: latent channels that guidance changes (3 of 4 in FiT).
        rope: rotary embedding.
    """

    hidden_size: int
    depth: int
    num_heads: int
    adaln_lora_dim: int
    in_channels: int = 4
    patch_size: int = 2
    num_classes: int = 1000
    mlp_ratio: float = 4.0
    time_shifting: float = 1.0
    guided_channels: int = 3
    rope: RopeConfig = field(default_factory=RopeConfig)

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}"
            )
        if self.head_dim % 4:
            raise ValueError(f"head dim {self.head_dim} is not a multiple of 4 (2-D rotary pairs)")
        if not 0 < self.guided_channels <= self.in_channels:
            raise ValueError(
                f"guided_channels {self.guided_channels} is not in 1..{self.in_channels}"
            )

    @property
    def head_dim(self) -> int:
        """Values per head."""
        return self.hidden_size // self.num_heads

    @property
    def token_channels(self) -> int:
        """Values of a token outside the network: channels x patch x patch."""
        return self.in_channels * self.patch_size**2

    @property
    def output_channels(self) -> int:
        """Values of a token's prediction: those of the token."""
        return self.token_channels

    @property
    def guided_token_channels(self) -> int:
        """Leading values of a token that guidance changes (channels are slowest in a token)."""
        return self.guided_channels * self.patch_size**2

    @property
    def mlp_hidden(self) -> int:
        """SwiGLU width: two thirds of `mlp_ratio` x D, rounded down."""
        return int(self.hidden_size * self.mlp_ratio) * 2 // 3

    @property
    def null_label(self) -> int:
        """The label that means "no class"."""
        return self.num_classes

    def flops_per_token(self, sequence_tokens: int) -> float:
        """Floating-point operations of one token in one evaluation (a multiply-add is two)."""
        width = self.hidden_size
        linear = self.depth * (4 * width**2 + 3 * width * self.mlp_hidden)
        attention = self.depth * 2 * sequence_tokens * width
        ends = 2 * width * self.token_channels
        return 2.0 * (linear + attention + ends)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for a `config.json`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """Read what `to_dict` wrote; keys that begin with an underscore are the file's own.

        Raises:
            ValueError: a key is unknown or one without default is missing.
        """
        values = {k: v for k, v in values.items() if not k.startswith("_")}
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"unknown model config keys {unknown}; known: {sorted(known)}")
        rope = values.get("rope")
        try:
            if isinstance(rope, dict):
                values["rope"] = RopeConfig(**rope)
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"model config does not fit: {error}") from error


HR_ROPE = RopeConfig(mode="ntk-aware", decouple=True, ori_max_pe_len=16)
_XL = ModelConfig(hidden_size=1152, depth=36, num_heads=16, adaln_lora_dim=288)
_3B = ModelConfig(hidden_size=2304, depth=40, num_heads=24, adaln_lora_dim=576)

NAMED_CONFIGS: dict[str, ModelConfig] = {
    "FiTv2-B/2": ModelConfig(hidden_size=768, depth=15, num_heads=12, adaln_lora_dim=192),
    "FiTv2-XL/2": _XL,
    "FiTv2-3B/2": _3B,
    "FiTv2-HR-XL/2": replace(_XL, rope=HR_ROPE),
    "FiTv2-HR-3B/2": replace(_3B, rope=HR_ROPE),
    # Ours, for small machines and for tests.
    "FiTv2-S/2": ModelConfig(hidden_size=384, depth=12, num_heads=6, adaln_lora_dim=96),
    "FiTv2-Ti/2": ModelConfig(hidden_size=256, depth=6, num_heads=4, adaln_lora_dim=64),
    "FiTv2-toy/2": ModelConfig(hidden_size=48, depth=2, num_heads=2, adaln_lora_dim=12),
}


def named_config(name: str, num_classes: int | None = None) -> ModelConfig:
    """Look up a named size, optionally with another number of classes.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in NAMED_CONFIGS:
        raise ValueError(f"model {name!r} is unknown; known: {', '.join(NAMED_CONFIGS)}")
    config = NAMED_CONFIGS[name]
    return config if num_classes is None else replace(config, num_classes=num_classes)
