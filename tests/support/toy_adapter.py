"""Adapters of the toy bundle, with something in every matrix."""

from collections.abc import Sequence
from pathlib import Path

import torch

from fit_models.adapted_network import adapter_state, add_adapters
from fit_models.adapter import Adapter, AdapterConfig, fingerprint_of, save_adapter
from fit_models.networks.fitv2 import FiTv2
from support.toy_bundle import make_toy_network

RANK, ALPHA = 4, 6.0


def make_adapted_network(num_new_classes: int = 0, seed: int = 0, trained: bool = True) -> FiTv2:
    """The toy network with adapters; `trained` fills what begins at zero, and moves new rows."""
    network = make_toy_network()
    generator = torch.Generator().manual_seed(seed)
    add_adapters(network, RANK, ALPHA, generator, num_new_classes)
    if trained:
        for name, weight in adapter_state(network).items():
            if "lora_A" not in name:
                weight += 0.2 * torch.randn(weight.shape, generator=generator)
    return network


def make_toy_adapter(
    class_names: Sequence[str] = (), seed: int = 0, name: str = "toy-adapter"
) -> Adapter:
    """What would be loaded from the folder of such a network's adapter."""
    network = make_adapted_network(len(class_names), seed)
    config = AdapterConfig(
        RANK, ALPHA, "toy", fingerprint_of(network.state_dict()), tuple(class_names)
    )
    return Adapter(name, config, adapter_state(network))


def save_toy_adapter(folder: Path, class_names: Sequence[str] = (), seed: int = 0) -> Path:
    """Write such an adapter and return its folder."""
    adapter = make_toy_adapter(class_names, seed)
    save_adapter(folder, adapter.config, adapter.weights)
    return folder
