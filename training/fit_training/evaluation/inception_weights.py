"""Files with the weights of the FID's Inception-v3.

Knows file formats and the network's tensor names. Knows nothing of images.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from fit_training.evaluation.inception import InceptionV3


def is_inception(names: set[str]) -> bool:
    """Whether tensor names are those of the network."""
    return {"Conv2d_1a_3x3.conv.weight", "Mixed_7c.branch_pool.conv.weight"} <= names


def read_saved_tensors(path: Path) -> dict[str, Tensor]:
    """Read what `torch.save` wrote; no code in it is run.

    Raises:
        ValueError: the file holds something else than tensors by name.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"feature network: {path} holds no weights: {first}") from None
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise ValueError(f"feature network: {path} does not hold tensors by name")
    return found


def build_inception(weights: Mapping[str, Tensor], origin: str) -> InceptionV3:
    """The network in evaluation mode with these weights, float32.

    Raises:
        ValueError: names or shapes are not the network's; `origin` names the file.
    """
    network = InceptionV3().eval().requires_grad_(False)
    expected = network.state_dict()
    counters = {name for name in expected if name.endswith("num_batches_tracked")}
    given = {name: tensor for name, tensor in weights.items() if name not in counters}
    given = {name: tensor for name, tensor in given.items() if not name.startswith("AuxLogits.")}
    if missing := sorted(expected.keys() - counters - given.keys()):
        raise ValueError(f"feature network: {origin} lacks the tensor {missing[0]}")
    if unknown := sorted(given.keys() - expected.keys()):
        raise ValueError(f"feature network: unknown tensors in {origin}: {unknown[:5]}")
    for name, tensor in given.items():
        if tensor.shape != expected[name].shape:
            raise ValueError(
                f"feature network: {name} in {origin} has shape {tuple(tensor.shape)}, "
                f"not {tuple(expected[name].shape)}"
            )
    network.load_state_dict({name: tensor.float() for name, tensor in given.items()}, strict=False)
    return network
