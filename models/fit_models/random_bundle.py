"""Models of the published sizes with random weights, to measure speed where no weights are.

The autoencoder and the class names are the embedded model's. Pictures mean nothing.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from fit_models.bundle import EMBEDDED, Bundle, load_bundle
from fit_models.config import NAMED_CONFIGS, ModelConfig
from fit_models.device import resolve_device, resolve_dtype
from fit_models.networks.fitv2 import FiTv2
from fit_models.prepacked import lay_out_weights

RANDOM = "random:"
_GATE_STD = 0.02  # of what starts at zero in training, so that blocks do something


def is_random(model: str) -> bool:
    """Whether a model's name asks for random weights: as "random:FiTv2-B/2"."""
    return model.startswith(RANDOM)


def random_bundle(
    model: str, device: torch.device | str = "cpu", dtype: torch.dtype | str = torch.float32
) -> Bundle:
    """A bundle around a network of a named size, with the same weights every time.

    Args:
        model: "random:" and a name of `fit_models.config.NAMED_CONFIGS`.
        device, dtype: as for `load_bundle`.

    Raises:
        ValueError: the size is unknown.
    """
    size = model.removeprefix(RANDOM)
    if size not in NAMED_CONFIGS:
        raise ValueError(f"model {model!r}: sizes are {', '.join(NAMED_CONFIGS)}")
    device = resolve_device(device)
    dtype = resolve_dtype(dtype, device)
    host = load_bundle(EMBEDDED, device, dtype)
    config = replace(NAMED_CONFIGS[size], num_classes=host.model_config.num_classes)
    network = _network(config).to(device, dtype).eval().requires_grad_(False)
    lay_out_weights(network)
    return replace(host, name=model, network=network)


def _network(config: ModelConfig) -> FiTv2:
    network = FiTv2(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 1
            std = fan_in**-0.5 if parameter.dim() > 1 else _GATE_STD
            nn.init.normal_(parameter, std=std, generator=generator)
    return network
