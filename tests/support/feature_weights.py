"""Invented weights of the feature network, in a file with the released file's names."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from fit_training.feature_network import STAGES


def released_convolutions() -> list[tuple[str, str, tuple[int, int, int, int]]]:
    """Return (convolution, its batch norm, weight shape), as the release names and shapes them."""
    found = [("_conv_stem", "_bn0", (32, 3, 3, 3))]
    width, number = 32, 0
    for expansion, channels, repeats, _, kernel in STAGES:
        for _ in range(repeats):
            block, hidden = f"_blocks.{number}.", width * expansion
            if expansion > 1:
                found.append((f"{block}_expand_conv", f"{block}_bn0", (hidden, width, 1, 1)))
            depthwise = (hidden, 1, kernel, kernel)
            found.append((f"{block}_depthwise_conv", f"{block}_bn1", depthwise))
            found.append((f"{block}_project_conv", f"{block}_bn2", (channels, hidden, 1, 1)))
            width, number = channels, number + 1
    return [*found, ("_conv_head", "_bn1", (1280, width, 1, 1))]


def invented_weights(seed: int = 0) -> dict[str, Tensor]:
    """Return tensors that keep activations alive, with batch norms that are not the identity."""
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, Tensor] = {}
    for convolution, norm, shape in released_convolutions():
        scale = (2 / (shape[1] * shape[2] * shape[3])) ** 0.5
        weights[f"{convolution}.weight"] = torch.randn(shape, generator=generator) * scale
        for name, low, high in (
            ("weight", 0.8, 1.2),
            ("bias", -0.1, 0.5),
            ("running_mean", -0.1, 0.1),
            ("running_var", 0.5, 1.0),
        ):
            spread = torch.rand(shape[0], generator=generator) * (high - low)
            weights[f"{norm}.{name}"] = low + spread
        weights[f"{norm}.num_batches_tracked"] = torch.tensor(0)
    weights["_fc.weight"] = torch.randn(1000, 1280, generator=generator) * 0.02
    weights["_fc.bias"] = torch.randn(1000, generator=generator) * 0.02
    return {name: w.half() if w.is_floating_point() else w for name, w in weights.items()}


def write_feature_weights(path: Path, weights: dict[str, Tensor] | None = None) -> Path:
    """Write the given weights, or invented ones, and return the path."""
    save_file(invented_weights() if weights is None else weights, path)
    return path
