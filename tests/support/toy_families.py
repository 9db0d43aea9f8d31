"""A small network of every family, and a bundle around it that is served like a real one."""

from pathlib import Path

import torch

from fit_models.bundle import SamplingDefaults
from fit_models.config import NAMED_CONFIGS
from fit_models.families import Network, NetworkConfig, family_of, samplers_of
from fit_models.networks.dit_config import DiTConfig
from fit_models.networks.fitv1_config import FiTv1Config
from support.toy_bundle import CLASS_NAMES, make_toy_bundle, open_gates

_CLASSES = len(CLASS_NAMES)
TOY_CONFIGS: dict[str, NetworkConfig] = {
    "FiTv2": NAMED_CONFIGS["FiTv2-toy/2"],
    "FiTv1": FiTv1Config(hidden_size=48, depth=2, num_heads=2, num_classes=_CLASSES),
    "DiT": DiTConfig(hidden_size=48, depth=2, num_heads=2, num_classes=_CLASSES, trained_grid=4),
    "SiT": DiTConfig(
        hidden_size=48,
        depth=2,
        num_heads=2,
        num_classes=_CLASSES,
        trained_grid=4,
        prediction="velocity",
    ),
    "DiT-fixed-variance": DiTConfig(
        hidden_size=48,
        depth=2,
        num_heads=2,
        num_classes=_CLASSES,
        trained_grid=4,
        learned_variance=False,
        positions="rescaled",
    ),
}


def toy_network(name: str, seed: int = 0) -> Network:
    """With every gate open."""
    config = TOY_CONFIGS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = family_of(config).network(config)
        open_gates(network)
    return network.eval().requires_grad_(False)


def make_family_bundle(folder: Path, name: str) -> Path:
    """Write a bundle of a family and return its folder."""
    config = TOY_CONFIGS[name]
    if config.num_classes != _CLASSES:
        return make_toy_bundle(folder)
    defaults = SamplingDefaults(4, 2.0, sampler=samplers_of(config)[0])
    return make_toy_bundle(folder, network=toy_network(name), defaults=defaults)
