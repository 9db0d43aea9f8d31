"""Every family that is served: its network, its config, and what it can be asked for.

The one place that knows them all. A family's own files know it alone; the engine and the bundles
ask here. What a family does not do is refused with what would work.

Dimension key: N tokens of a grid, A and B values of a token's row in the two position tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fit_models.config import NAMED_CONFIGS, ModelConfig
from fit_models.diffusion.discrete_sampler import DISCRETE_SAMPLERS, make_discrete_trajectory
from fit_models.diffusion.sampler import SAMPLERS, Trajectory, make_trajectory
from fit_models.networks import dit_config, fitv1_config
from fit_models.networks.dit import DiT
from fit_models.networks.dit_config import NAMED_DIT_CONFIGS, DiTConfig
from fit_models.networks.fitv1 import FiTv1
from fit_models.networks.fitv1_config import NAMED_FITV1_CONFIGS, FiTv1Config
from fit_models.networks.fitv2 import FiTv2
from fit_models.rope import rope_table

Network = FiTv2 | FiTv1 | DiT
NetworkConfig = ModelConfig | FiTv1Config | DiTConfig


@dataclass(frozen=True)
class Family:
    """What is known of one kind of network.

    Attributes:
        name: `_class_name` in a bundle's `transformer/config.json`.
        network: makes one from a config.
        config_of: reads a config from plain values; raises `ValueError`.
        named_configs: sizes that have a name.
        position_tables: (rows, columns, config) to the tables [N, A] and [N, B] of a grid.
        trained_side: tokens an axis that most of its training had.
        check_size: (rows, columns, config); raises `ValueError` for a grid it cannot do.
    """

    name: str
    network: Callable[[Any], Network]
    config_of: Callable[[dict[str, Any]], NetworkConfig]
    named_configs: Mapping[str, NetworkConfig]
    position_tables: Callable[[int, int, Any], tuple[Tensor, Tensor]]
    trained_side: Callable[[Any], int]
    check_size: Callable[[int, int, Any], None]


def _fitv2_positions(rows: int, columns: int, config: ModelConfig) -> tuple[Tensor, Tensor]:
    return rope_table(rows, columns, config.head_dim, config.rope)


def _any_size(rows: int, columns: int, config: ModelConfig) -> None:
    """FiTv2 takes every grid there is."""


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            name="FiTv2",
            network=FiTv2,
            config_of=ModelConfig.from_dict,
            named_configs=NAMED_CONFIGS,
            position_tables=_fitv2_positions,
            trained_side=lambda config: config.rope.ori_max_pe_len,
            check_size=_any_size,
        ),
        Family(
            name="FiTv1",
            network=FiTv1,
            config_of=FiTv1Config.from_dict,
            named_configs=NAMED_FITV1_CONFIGS,
            position_tables=fitv1_config.position_tables,
            trained_side=lambda config: config.rope.ori_max_pe_len,
            check_size=fitv1_config.check_size,
        ),
        Family(
            name="DiT",
            network=DiT,
            config_of=DiTConfig.from_dict,
            named_configs=NAMED_DIT_CONFIGS,
            position_tables=dit_config.position_tables,
            trained_side=lambda config: config.trained_grid,
            check_size=dit_config.check_size,
        ),
    )
}
_OF_CONFIG: dict[type, str] = {ModelConfig: "FiTv2", FiTv1Config: "FiTv1", DiTConfig: "DiT"}


def family_of(config: NetworkConfig) -> Family:
    """The family that a config is of."""
    return FAMILIES[_OF_CONFIG[type(config)]]


def family_named(name: object) -> Family:
    """The family whose name a bundle gives.

    Raises:
        ValueError: there is none of this name.
    """
    if not isinstance(name, str) or name not in FAMILIES:
        raise ValueError(
            f"transformer/config.json: _class_name is {name!r}; known: {', '.join(FAMILIES)}"
        )
    return FAMILIES[name]


def empty_network(config: NetworkConfig) -> Network:
    """A network without weights, on the meta device."""
    with torch.device("meta"):
        return family_of(config).network(config)


def position_tables(rows: int, columns: int, config: NetworkConfig) -> tuple[Tensor, Tensor]:
    """What a token's position means to a network: [N, A] and [N, B], N row-major."""
    return family_of(config).position_tables(rows, columns, config)


def position_widths(config: NetworkConfig) -> tuple[int, int]:
    """A and B of the tables of a network."""
    side = family_of(config).trained_side(config)
    first, second = position_tables(side, side, config)
    return first.shape[1], second.shape[1]


def samplers_of(config: NetworkConfig) -> tuple[str, ...]:
    """Update rules that a network's prediction allows, the plainest first."""
    return tuple(DISCRETE_SAMPLERS if config.prediction == "noise" else SAMPLERS)


def trajectory_of(config: NetworkConfig, sampler: str, num_inference_steps: int) -> Trajectory:
    """All evaluations of a sequence under a named sampler.

    Raises:
        ValueError: the network is not sampled so, or the number of steps cannot be.
    """
    rules = samplers_of(config)
    if sampler not in rules:
        family = family_of(config).name
        raise ValueError(
            f"sampler {sampler!r} is not for {family}, which predicts the {config.prediction}; "
            f"known: {', '.join(rules)}"
        )
    if config.prediction == "noise":
        learned = config.output_channels > config.token_channels
        return make_discrete_trajectory(sampler, num_inference_steps, learned)
    return make_trajectory(sampler, num_inference_steps)
