"""From TerDiT's own constructor arguments, pictures and guidance to our packed calls.

Dimension key: B pictures, C channels.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from fit_kernels.ternary_weights import pack_ternary, ternarised
from fit_models.diffusion.guidance import guide
from fit_models.networks.terdit import TerDiT
from fit_models.networks.terdit_config import TerDiTConfig, position_tables
from fit_models.packing import PackedLayout
from fit_models.patches import patchify, unpatchify
from fit_models.positions import layout_of_tables
from fit_models.ternary import FakeTernaryLinear, TernaryLinear
from support.golden import Case, Family


def config_from_official(values: dict[str, Any]) -> TerDiTConfig:
    return TerDiTConfig(
        hidden_size=values["dim"],
        depth=values["n_layers"],
        num_heads=values["n_heads"],
        in_channels=values["in_channels"],
        patch_size=values["patch_size"],
        num_classes=values["num_classes"],
        mlp_multiple=values["multiple_of"],
        norm_eps=values["norm_eps"],
        qk_norm=values["qk_norm"],
        trained_grid=values["input_size"] // values["patch_size"],
        label_order="numbers",  # recorded labels are those of the network
    )


def packed_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A float file's tensors as the packed file holds them."""
    return {
        key: pack_ternary(ternarised(value))
        if f"{key.removesuffix('.weight')}.alphas" in weights and key.endswith(".weight")
        else value
        for key, value in weights.items()
    }


def network_of(family: Family, case: Case, weights: str) -> TerDiT:
    """Weights: "packed", "float" (packed as they are loaded) or "fake" (floats, for training)."""
    assert case.model is not None
    linear = FakeTernaryLinear if weights == "fake" else TernaryLinear
    network = TerDiT(config_from_official(case.config), linear)
    state = family.weights(case.model)
    network.load_state_dict(packed_weights(state) if weights == "packed" else state, strict=True)
    return network.eval().requires_grad_(False)


def layout_of(grids: list[tuple[int, int]], config: TerDiTConfig) -> PackedLayout:
    return layout_of_tables(grids, functools.partial(position_tables, config=config))


def run_pictures(network: TerDiT, x_BChw: Tensor, t_B: Tensor, y_B: Tensor) -> Tensor:
    """As the original's forward: latents in, noise and variance latents out."""
    config, (b, _, height, width) = network.config, x_BChw.shape
    grid = height // config.patch_size, width // config.patch_size
    tokens = patchify(x_BChw, config.patch_size).flatten(0, 1)
    out = network(tokens, layout_of([grid] * b, config), t_B, y_B.long())
    return unpatchify(out.unflatten(0, (b, -1)), *grid, config.patch_size)


def guided_pictures(
    network: TerDiT, x_BChw: Tensor, t_B: Tensor, y_B: Tensor, scale: float
) -> Tensor:
    """As the original's guided forward: both halves see the first half of x."""
    half, guided_channels = x_BChw[: len(x_BChw) // 2], network.config.guided_channels
    out = run_pictures(network, torch.cat((half, half)), t_B, y_B)
    pixels = out.movedim(1, -1).flatten(0, 2)
    conditional, null = pixels.chunk(2)
    scale_T1 = torch.full((len(conditional), 1), scale)
    guided = guide(conditional, null, scale_T1, guided_channels)
    # The other half gets the guided channels too, and keeps the rest of its own.
    other = torch.cat((guided[:, :guided_channels], null[:, guided_channels:]), 1)
    both = torch.cat((guided, other)).unflatten(0, (len(x_BChw), *x_BChw.shape[2:]))
    return both.movedim(-1, 1)
