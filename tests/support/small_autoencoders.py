"""Autoencoders of random weights, small enough for a test to train or to learn from."""

from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny


def write_small_autoencoder(folder: Path, seed: int = 0) -> Path:
    """Save an `AutoencoderTiny` of 8 channels and return its folder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = AutoencoderTiny(
            encoder_block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8),
            num_encoder_blocks=(0, 1, 1, 1),
            num_decoder_blocks=(1, 1, 1, 0),
        )
    network.save_pretrained(folder)
    return folder
