"""What a Flag-DiT or a Large-DiT is made of, the sizes that have a name, and what was released.

Large-DiT is Flag-DiT's network with DiT's process: keys and shapes of their checkpoints are the
same, so only a config can tell them apart. Knows numbers; not layers or files.
Sources: Lumina-T2X (arXiv:2405.05945); the code of Alpha-VLLM/Lumina-T2X (Flag-DiT-ImageNet) and
Alpha-VLLM/LLaMA2-Accessory (Large-DiT-ImageNet).

Dimension key: N tokens of a grid, E head dim.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from fit_models.networks.lumina_config import LuminaConfig
from fit_models.networks.lumina_positions import raster_tables
from fit_models.released.release import Release

PREDICTIONS = ("velocity", "noise")


@dataclass(frozen=True, kw_only=True)
class FlagDiTConfig(LuminaConfig):
    """A class-conditional Flag-DiT or Large-DiT.

    Attributes:
        num_classes: labels; label `num_classes` is the null label of guidance.
        prediction: "velocity" (Flag-DiT), data minus noise at t in [0, 1] from noise to data, or
            "noise" (Large-DiT) with a learned variance, at a raw timestep 0..999.
        trained_side: tokens a side of the one square grid the network was trained with.
    """

    num_classes: int = 1000
    prediction: str = "velocity"
    trained_side: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prediction not in PREDICTIONS:
            raise ValueError(
                f"prediction {self.prediction!r} is unknown; known: {', '.join(PREDICTIONS)}"
            )
        for name in ("num_classes", "trained_side"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")

    @property
    def output_channels(self) -> int:
        """P, values of a token's prediction: K, or 2 K where a variance is predicted too."""
        return self.token_channels * (2 if self.prediction == "noise" else 1)

    @property
    def null_label(self) -> int:
        """The label that means "no class"."""
        return self.num_classes


def check_size(rows: int, columns: int, config: FlagDiTConfig) -> None:
    """Positions count tokens in reading order, so only the trained width means what it meant.

    Raises:
        ValueError: the grid is another than the trained one.
    """
    if (rows, columns) != (config.trained_side, config.trained_side):
        side = config.trained_side
        raise ValueError(
            f"a grid of {rows}x{columns} tokens cannot be drawn; this network knows {side}x{side} "
            f"alone, a latent of {side * config.patch_size}x{side * config.patch_size}"
        )


def position_tables(rows: int, columns: int, config: FlagDiTConfig) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every token's place in reading order, fp32 [N, E/2]."""
    return raster_tables(rows, columns, config.head_dim)


def _named_sizes() -> dict[str, FlagDiTConfig]:
    shapes = {"600M": (1536, 16), "3B": (3072, 32), "7B": (4096, 32)}
    sizes = {}
    for size, (width, depth) in shapes.items():
        config = FlagDiTConfig(hidden_size=width, depth=depth, num_heads=32)
        sizes[f"Flag-DiT-{size}"] = config
        if size != "600M":
            sizes[f"Large-DiT-{size}"] = replace(config, prediction="noise")
    return sizes


NAMED_FLAG_DIT_CONFIGS: dict[str, FlagDiTConfig] = _named_sizes()

# Flag-DiT-ImageNet was published without weights. The folder 240308_3b_1024 beside these two is
# not a third: it is an early text-to-image model.
RELEASES = (
    Release(
        name="Large-DiT-3B",
        files=("240218_3b_bs256_step1350k/consolidated_ema.00-of-01.pth",),
        size_bytes=None,  # 4,237,824,032 fp32 values: about 17 GB
        licence="none stated; the code is MIT",
        source="huggingface.co/Alpha-VLLM/Large-DiT",
        config_name="Large-DiT-3B",
    ),
    Release(
        name="Large-DiT-7B",
        files=("240218_7b_bs512_step620k/consolidated_ema.00-of-01.pth",),
        size_bytes=None,  # 7,293,819,936 fp32 values: about 29 GB
        licence="none stated; the code is MIT",
        source="huggingface.co/Alpha-VLLM/Large-DiT",
        config_name="Large-DiT-7B",
    ),
)
