"""DiMR from the original constructor's arguments, and its latents as packed tokens."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from fit_models.networks.dimr import DiMR
from fit_models.networks.dimr_config import DiMRConfig, StageConfig, position_tables
from fit_models.packing import PackedLayout
from fit_models.patches import patchify, unpatchify
from fit_models.positions import layout_of_tables
from support.golden import Case, Family


def config_of(official: dict[str, Any]) -> DiMRConfig:
    stages = official["stage_configs"]
    return DiMRConfig(
        stages=tuple(
            StageConfig(
                hidden_size=stage["dim"],
                mlp_hidden=stage["hidden_dim"],
                num_blocks=stage["num_blocks"],
                patch_size=stage["input_feature_ratio"],
                num_heads=stage.get("num_attention_heads", 0),
                kernel_size=stage.get("kernel_size", 7),
            )
            for stage in stages
        ),
        latent_size=stages[-1]["max_height"],
        in_channels=official["channels"],
        num_classes=official["num_classes"] - 1,
    )


def network_of(family: Family, case: Case) -> DiMR:
    assert case.model is not None
    network = DiMR(config_of(case.config))
    network.load_state_dict(family.weights(case.model), strict=True)
    return network.eval().requires_grad_(False)


def layout_for(network: DiMR, grids: list[tuple[int, int]]) -> PackedLayout:
    return layout_of_tables(grids, partial(position_tables, config=network.config))


def branch_maps(network: DiMR, x_BChw: Tensor, n_B: Tensor, y_B: Tensor) -> list[Tensor]:
    """What every branch predicts for latents of one size, as maps."""
    patch, (height, width) = network.config.patch_size, x_BChw.shape[-2:]
    layout = layout_for(network, [(height // patch, width // patch)] * len(x_BChw))
    tokens = patchify(x_BChw, patch).flatten(0, 1)
    modulation = network.modulate(n_B, y_B.long(), layout)
    maps = []
    outs = network.predictions(tokens, layout, modulation)
    for stage, out in zip(network.config.stages, outs, strict=True):
        own = 1 if len(maps) < len(outs) - 1 else patch  # the last comes in tokens of the whole
        rows, columns = (side // stage.patch_size // own for side in (height, width))
        maps.append(unpatchify(out.unflatten(0, (len(x_BChw), -1)), rows, columns, own))
    return maps


def predict(network: DiMR, x_BChw: Tensor, n_B: Tensor, y_B: Tensor) -> Tensor:
    """The last branch's noise for latents, by the plain forward."""
    patch, (height, width) = network.config.patch_size, x_BChw.shape[-2:]
    grid = (height // patch, width // patch)
    layout = layout_for(network, [grid] * len(x_BChw))
    out = network(patchify(x_BChw, patch).flatten(0, 1), layout, n_B, y_B.long())
    return unpatchify(out.unflatten(0, (len(x_BChw), -1)), *grid, patch)


def guided(network: DiMR, x: Tensor, n_B: Tensor, y_B: Tensor, scale_B: Tensor) -> Tensor:
    """Guidance of all channels, the null label in a second half of one packed batch."""
    null = torch.full_like(y_B, network.config.null_label)
    both = predict(network, torch.cat((x, x)), torch.cat((n_B, n_B)), torch.cat((y_B, null)))
    conditional, unconditional = both.chunk(2)
    return unconditional + scale_B.view(-1, 1, 1, 1) * (conditional - unconditional)
