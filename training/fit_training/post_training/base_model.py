"""The model that post-training goes on from: its weights, its latents, its classes.

Knows bundles; not what is trained or on what data.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fit_models.adapter import fingerprint_of
from fit_models.bundle import SamplingDefaults, bundle_folder, load_bundle
from fit_models.config import ModelConfig
from fit_models.networks.fitv2 import FiTv2


@dataclass(frozen=True)
class BaseModel:
    """What a bundle says, and its weights.

    Attributes:
        folder: of the bundle.
        name: as clients see it.
        config: of the network.
        weights: float32, on the CPU.
        class_names: in label order.
        defaults: of sampling.
        shift_factor: taken from raw latents,
        scaling_factor: which are then multiplied by this.
        fingerprint: of the weights, `fit_models.adapter.fingerprint_of`.
    """

    folder: Path
    name: str
    config: ModelConfig
    weights: dict[str, Tensor]
    class_names: tuple[str, ...]
    defaults: SamplingDefaults
    shift_factor: float
    scaling_factor: float
    fingerprint: str

    def network(self, config: ModelConfig | None = None) -> FiTv2:
        """A copy of the network with weights of its own, of the base's config if None is given."""
        with torch.device("meta"):
            network = FiTv2(config or self.config)
        copies = {name: weight.clone() for name, weight in self.weights.items()}
        network.load_state_dict(copies, assign=True)
        return network.requires_grad_()

    def labels_of(self, class_names: tuple[str, ...]) -> tuple[int, ...]:
        """The label of each class; those the base does not know follow its own, in their order."""
        new = [name for name in class_names if name not in self.class_names]
        every = (*self.class_names, *new)
        return tuple(every.index(name) for name in class_names)


def read_base(name_or_path: str) -> BaseModel:
    """Read a bundle to go on from.

    Raises:
        ValueError: there is none, it is damaged, or it is of another family than FiTv2.
    """
    bundle = load_bundle(name_or_path, "cpu", torch.float32, lay_out=False)
    network = bundle.fitv2("methods of post-training")
    weights = {k: v.detach().clone() for k, v in network.state_dict().items()}
    return BaseModel(
        folder=bundle_folder(name_or_path),
        name=bundle.name,
        config=network.config,
        weights=weights,
        class_names=bundle.class_names,
        defaults=bundle.defaults,
        shift_factor=bundle.autoencoder.shift_factor,
        scaling_factor=bundle.autoencoder.scaling_factor,
        fingerprint=fingerprint_of(weights),
    )
