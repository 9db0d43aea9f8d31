"""Networks that can be trained from nothing: those that know their first weights.

Knows named sizes and classes; not data or losses.
"""

from __future__ import annotations

from dataclasses import replace

from fit_models.config import NAMED_CONFIGS, ModelConfig
from fit_models.networks.dit import DiT
from fit_models.networks.dit_config import NAMED_DIT_CONFIGS, DiTConfig
from fit_models.networks.fitv1 import FiTv1
from fit_models.networks.fitv1_config import NAMED_FITV1_CONFIGS, FiTv1Config
from fit_models.networks.fitv2 import FiTv2

TrainedNetwork = FiTv2 | FiTv1 | DiT
TRAINED_NETWORKS = (FiTv2, FiTv1, DiT)
TrainedConfig = ModelConfig | FiTv1Config | DiTConfig
TRAINED_SIZES: dict[str, TrainedConfig] = {
    **NAMED_CONFIGS,
    **NAMED_FITV1_CONFIGS,
    **NAMED_DIT_CONFIGS,
    # Ours, for small machines and for tests.
    "FiT-toy/2": FiTv1Config(hidden_size=48, depth=2, num_heads=2),
    "DiT-toy/2": DiTConfig(hidden_size=48, depth=2, num_heads=2, trained_grid=4),
    "SiT-toy/2": DiTConfig(
        hidden_size=48, depth=2, num_heads=2, trained_grid=4, prediction="velocity"
    ),
}


def trained_config(size: str, num_classes: int) -> TrainedConfig:
    """A named size with a number of classes.

    Raises:
        ValueError: the name is unknown.
    """
    if size not in TRAINED_SIZES:
        raise ValueError(f"model {size!r} is unknown; known: {', '.join(TRAINED_SIZES)}")
    return replace(TRAINED_SIZES[size], num_classes=num_classes)
