"""Invented weights of the FID's Inception-v3, under the names of its usual file."""

import torch
from torch import Tensor

from fit_training.evaluation.inception import InceptionV3


def invented_inception_weights(seed: int = 0) -> dict[str, Tensor]:
    """Return tensors that keep activations alive, with batch norms that are not the identity."""
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, Tensor] = {}
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in InceptionV3().state_dict().items()}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            continue
        noise = torch.randn(shape, generator=generator)
        if name.endswith(("running_var", "bn.weight")):
            weights[name] = 1 + 0.2 * noise.clamp(-2, 2)
        elif noise.ndim > 1:
            weights[name] = noise * (2 / shape[1:].numel()) ** 0.5
        else:
            weights[name] = 0.1 * noise
    return weights
