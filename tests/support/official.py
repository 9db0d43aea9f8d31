"""From the original authors' constructor arguments and padded batches to our packed calls."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fit_models.config import ModelConfig, RopeConfig
from fit_models.networks.fitv2 import FiTv2
from fit_models.packing import PackedLayout, layout_of_grids
from support.golden import Case, Family


def config_from_official(values: dict[str, Any], override: dict[str, Any]) -> ModelConfig:
    merged = {**values, **override}
    return ModelConfig(
        hidden_size=merged["hidden_size"],
        depth=merged["depth"],
        num_heads=merged["num_heads"],
        adaln_lora_dim=merged["adaln_lora_dim"],
        in_channels=merged["in_channels"],
        patch_size=merged["patch_size"],
        num_classes=merged["num_classes"],
        mlp_ratio=merged["mlp_ratio"],
        time_shifting=merged.get("time_shifting", 1),
        rope=RopeConfig(
            mode=merged["custom_freqs"],
            decouple=merged.get("decouple", False),
            ori_max_pe_len=merged.get("ori_max_pe_len") or 16,
        ),
    )


def network_of(family: Family, case: Case) -> FiTv2:
    assert case.model is not None
    network = FiTv2(config_from_official(case.config, case.params.get("override", {})))
    network.load_state_dict(family.weights(case.model), strict=True)
    return network.eval().requires_grad_(False)


def grids_of(case: Case) -> list[tuple[int, int]]:
    return [(int(h), int(w)) for h, w in case.inputs["size"].reshape(-1, 2).tolist()]


def layout_for(network: FiTv2, grids: list[tuple[int, int]]) -> PackedLayout:
    dtype = network.x_embedder.proj.weight.dtype
    return layout_of_grids(grids, network.config.head_dim, network.config.rope, rope_dtype=dtype)


def pack(padded_BNK: Tensor, grids: list[tuple[int, int]]) -> Tensor:
    return torch.cat([padded_BNK[i, : h * w] for i, (h, w) in enumerate(grids)])


def pad(packed_TK: Tensor, grids: list[tuple[int, int]], length: int) -> Tensor:
    out = packed_TK.new_zeros(len(grids), length, packed_TK.shape[-1])
    start = 0
    for i, (h, w) in enumerate(grids):
        out[i, : h * w] = packed_TK[start : start + h * w]
        start += h * w
    return out


def with_rope(config: ModelConfig, **changes: Any) -> ModelConfig:
    return replace(config, rope=replace(config.rope, **changes))
