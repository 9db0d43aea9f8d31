"""A whole bundle of random weights: small and quick to make, but every file a real one has."""

from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from torch import nn

from fit_models.bundle import SamplingDefaults, save_bundle
from fit_models.config import named_config
from fit_models.families import Network
from fit_models.networks.fitv2 import FiTv2

CLASS_NAMES = ("teapot", "kite", "heron")
DEFAULTS = SamplingDefaults(num_inference_steps=4, guidance_scale=2.0)


def make_toy_network(seed: int = 0, num_classes: int = len(CLASS_NAMES)) -> FiTv2:
    """FiTv2-toy/2 with every gate open, so that each input changes the output."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = FiTv2(named_config("FiTv2-toy/2", num_classes))
        open_gates(network)
    return network.eval().requires_grad_(False)


def open_gates(network: nn.Module) -> None:
    """Random weights in every linear layer, also in those that training starts at zero."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.1)


def make_toy_bundle(
    folder: Path,
    seed: int = 0,
    network: Network | None = None,
    defaults: SamplingDefaults = DEFAULTS,
) -> Path:
    """Write a bundle of three classes, float32, 16 pixels a token, and return its folder."""
    network = network or make_toy_network(seed)
    save_bundle(
        folder,
        "toy",
        network.config,
        network.state_dict(),
        CLASS_NAMES if network.config.num_classes else (),
        defaults,
        dtype=torch.float32,
    )
    _make_autoencoder(seed).save_pretrained(folder / "vae")
    return folder


def _make_autoencoder(seed: int) -> AutoencoderTiny:
    """Eight channels, eight pixels a latent; its pictures range over all levels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = AutoencoderTiny(
            encoder_block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8),
            num_encoder_blocks=(0, 1, 1, 1),
            num_decoder_blocks=(1, 1, 1, 0),
        )
        convolutions = [m for m in network.decoder.modules() if isinstance(m, nn.Conv2d)]
        for convolution in convolutions:
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        last = convolutions[-1]
        assert last.bias is not None
        with torch.no_grad():  # fresh weights would give nearly black pictures
            last.weight *= 0.08
            last.bias.fill_(0.5)
    return network
