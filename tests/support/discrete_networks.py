"""DiT, its diffusers port and FiT v1 from the original constructors' arguments, and their batches.

The originals take DiT's input as latents and FiT v1's as padded (B, channels, N) tokens; both
become packed tokens here and go back for comparison.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fit_models.config import RopeConfig
from fit_models.networks import dit_config, fitv1_config
from fit_models.networks.dit import DiT
from fit_models.networks.dit_config import DiTConfig
from fit_models.networks.dit_diffusers import config_of_diffusers
from fit_models.networks.fitv1 import FiTv1
from fit_models.networks.fitv1_config import FiTv1Config
from fit_models.packing import PackedLayout
from fit_models.patches import patchify, unpatchify
from fit_models.positions import layout_of_tables
from fit_models.sincos import sincos_table
from support.golden import Case, Family

Grid = tuple[int, int]


def dit_config_of(values: dict[str, Any]) -> DiTConfig:
    if "num_layers" in values:
        return config_of_diffusers(values)
    return DiTConfig(
        hidden_size=values["hidden_size"],
        depth=values["depth"],
        num_heads=values["num_heads"],
        in_channels=values["in_channels"],
        patch_size=values["patch_size"],
        num_classes=values["num_classes"],
        mlp_ratio=values["mlp_ratio"],
        learned_variance=values["learn_sigma"],
        trained_grid=values["input_size"] // values["patch_size"],
    )


def fitv1_config_of(values: dict[str, Any], override: dict[str, Any]) -> FiTv1Config:
    merged = {**values, **override}
    return FiTv1Config(
        hidden_size=merged["hidden_size"],
        depth=merged["depth"],
        num_heads=merged["num_heads"],
        in_channels=merged["in_channels"],
        patch_size=merged["patch_size"],
        num_classes=merged["num_classes"],
        mlp_ratio=merged["mlp_ratio"],
        learned_variance=merged["learn_sigma"],
        rope=RopeConfig(
            mode=merged["custom_freqs"],
            decouple=merged.get("decouple", False),
            ori_max_pe_len=merged.get("ori_max_pe_len") or 16,
        ),
    )


@dataclass(frozen=True)
class Subject:
    """A network under test with the way its originals hold a batch."""

    network: DiT | FiTv1

    @property
    def config(self) -> DiTConfig | FiTv1Config:
        return self.network.config

    def layout(self, grids: list[Grid]) -> PackedLayout:
        if isinstance(self.config, DiTConfig):
            tables = partial(dit_config.position_tables, config=self.config)
        else:
            tables = partial(fitv1_config.position_tables, config=self.config)
        return layout_of_tables(grids, tables)

    def grids(self, case: Case, batch: Tensor) -> list[Grid]:
        if isinstance(self.config, FiTv1Config):
            return [(int(h), int(w)) for h, w in case.inputs["size"].reshape(-1, 2).tolist()]
        patch = self.config.patch_size
        return [(batch.shape[-2] // patch, batch.shape[-1] // patch)] * batch.shape[0]

    def pack(self, batch: Tensor, grids: list[Grid]) -> Tensor:
        """Latents, or padded tokens with channels before positions, to packed tokens."""
        if isinstance(self.config, DiTConfig):
            return patchify(batch, self.config.patch_size).flatten(0, 1)
        return torch.cat([batch[i, :, : h * w].t() for i, (h, w) in enumerate(grids)])

    def unpack(self, packed_TK: Tensor, grids: list[Grid], like: Tensor) -> Tensor:
        parts = packed_TK.split([h * w for h, w in grids])
        if isinstance(self.config, DiTConfig):
            (grid,) = set(grids)
            return unpatchify(torch.stack(parts), *grid, self.config.patch_size)
        out = packed_TK.new_zeros(len(grids), packed_TK.shape[1], like.shape[-1])
        for i, part in enumerate(parts):
            out[i, :, : len(part)] = part.t()
        return out


def subject_of(family: Family, case: Case) -> Subject:
    """The network of a case with its weights, loaded strictly under the released names."""
    assert case.model is not None
    weights = family.weights(case.model)
    if family.name == "fitv1":
        network: DiT | FiTv1 = FiTv1(fitv1_config_of(case.config, case.params.get("override", {})))
    else:
        network = DiT(dit_config_of(case.config))
        grid, width = network.config.trained_grid, network.config.hidden_size
        weights["pos_embed"] = sincos_table(grid, grid, width)[None]
    network.load_state_dict(weights, strict=True)
    return Subject(network.eval().requires_grad_(False))
