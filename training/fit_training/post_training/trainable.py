"""What post-training for higher resolutions trains, and how rotary positions stretch for it.

Knows names of weights and the rotary config; not data, losses or optimizers.
Source: FiTv2 §3.4 (arXiv:2410.13925) and its released code. Biases, the patch embedding, all adaLN
projections and the final layer are trained, about 14 % of the weights; the products of attention
and MLP, the timestep's and the label table stay.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from fit_models.config import ModelConfig
from fit_models.networks.fitv2 import FiTv2

TRAINED = ("x_embedder", "bias", "LN", "final_layer")
"""A weight is trained if one of these is in its name; `LN` is in every `adaLN_modulation`."""


def is_trained(name: str) -> bool:
    """Whether high-resolution post-training trains the weight of this name."""
    return any(part in name for part in TRAINED)


def freeze_for_high_resolution(network: nn.Module) -> int:
    """Leave only what high-resolution post-training trains to the optimizer.

    Returns:
        how many numbers are trained.
    """
    count = 0
    for name, weight in network.named_parameters():
        weight.requires_grad_(is_trained(name))
        count += weight.numel() if weight.requires_grad else 0
    return count


@torch.no_grad()
def restart(network: FiTv2) -> None:
    """Give what is trained fresh weights, as the released code does: gates shut, output zero.

    Draws from torch's global generator. Without it post-training goes on from the weights there
    are, which is the gentler way.
    """
    with torch.device("meta"):
        fresh = FiTv2(network.config)
    trained = {name: weight for name, weight in network.named_parameters() if is_trained(name)}
    empty = {name: torch.empty_like(weight) for name, weight in trained.items()}
    fresh.load_state_dict(empty, strict=False, assign=True)
    fresh.initialize()  # of the others nothing is there to be written
    for name, weight in trained.items():
        weight.copy_(fresh.get_parameter(name))


def high_resolution_config(config: ModelConfig, trained_length: int | None = None) -> ModelConfig:
    """The network's config with rotary frequencies that stretch with the picture (VisionNTK).

    Up to the trained length frequencies are those of every mode; beyond, each axis is stretched by
    its own length, in training as in serving.

    Args:
        config: of the base.
        trained_length: tokens an axis that the base was trained with; what its config says if None
            (16 in every released model).

    Raises:
        ValueError: the length is below 1.
    """
    length = config.rope.ori_max_pe_len if trained_length is None else trained_length
    rope = replace(config.rope, mode="ntk-aware", decouple=True, ori_max_pe_len=length)
    return replace(config, rope=rope)
