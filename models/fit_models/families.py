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
from fit_models.diffusion.dpm_solver import dpm_solver_2m, dpm_solver_single
from fit_models.diffusion.guidance import Guidance
from fit_models.diffusion.power_cosine import power_cosine_scale
from fit_models.diffusion.sampler import SAMPLERS, Evaluation, Trajectory, make_trajectory
from fit_models.diffusion.shifted_flow import ALONG, shifted_trajectory
from fit_models.diffusion.vp_schedule import scaled_linear_schedule
from fit_models.networks import (
    diffit_config,
    dimr_config,
    dit_config,
    fitv1_config,
    flag_dit_config,
    lumina_next_config,
    lumina_t2i_config,
    mdt_config,
    next_dit_config,
    terdit_config,
)
from fit_models.networks.diffit import DiffiT
from fit_models.networks.diffit_config import NAMED_DIFFIT_CONFIGS, DiffiTConfig
from fit_models.networks.dimr import DiMR
from fit_models.networks.dimr_config import NAMED_DIMR_CONFIGS, DiMRConfig
from fit_models.networks.dit import DiT
from fit_models.networks.dit_config import NAMED_DIT_CONFIGS, DiTConfig
from fit_models.networks.fitv1 import FiTv1
from fit_models.networks.fitv1_config import NAMED_FITV1_CONFIGS, FiTv1Config
from fit_models.networks.fitv2 import FiTv2
from fit_models.networks.flag_dit import FlagDiT
from fit_models.networks.flag_dit_config import NAMED_FLAG_DIT_CONFIGS, FlagDiTConfig
from fit_models.networks.lumina_next import LuminaNext
from fit_models.networks.lumina_next_config import NAMED_LUMINA_NEXT_CONFIGS, LuminaNextConfig
from fit_models.networks.lumina_positions import RopeScaling
from fit_models.networks.lumina_t2i import LuminaT2I
from fit_models.networks.lumina_t2i_config import NAMED_LUMINA_T2I_CONFIGS, LuminaT2IConfig
from fit_models.networks.mdt import MDT
from fit_models.networks.mdt_config import NAMED_MDT_CONFIGS, MDTConfig
from fit_models.networks.next_dit import NextDiT
from fit_models.networks.next_dit_config import NAMED_NEXT_DIT_CONFIGS, NextDiTConfig
from fit_models.networks.terdit import TerDiT
from fit_models.networks.terdit_config import NAMED_TERDIT_CONFIGS, TerDiTConfig
from fit_models.rope import rope_table

ClassNetwork = FiTv2 | FiTv1 | DiT | MDT | DiffiT | DiMR | FlagDiT | NextDiT | TerDiT
TextNetwork = LuminaNext | LuminaT2I
Network = ClassNetwork | TextNetwork
ClassConfig = (
    ModelConfig
    | FiTv1Config
    | DiTConfig
    | MDTConfig
    | DiffiTConfig
    | DiMRConfig
    | FlagDiTConfig
    | NextDiTConfig
    | TerDiTConfig
)
TextConfig = LuminaNextConfig | LuminaT2IConfig
NetworkConfig = ClassConfig | TextConfig
TableKey = tuple[int, int] | tuple[int, int, RopeScaling]
"""Rows, columns, and how the tables are stretched where that changes in a sequence's life."""
VELOCITY, NOISE = "velocity", "noise"
SOLVERS: dict[str, Callable[[int], Trajectory]] = {
    "dpm-solver": lambda steps: dpm_solver_single(steps, scaled_linear_schedule()),
    "dpm-solver-2m": lambda steps: dpm_solver_2m(steps, scaled_linear_schedule()),
}
ALL_SAMPLERS = (*SAMPLERS, *DISCRETE_SAMPLERS, *SOLVERS)


@dataclass(frozen=True)
class CaptionReading:
    """How a network that reads captions was shown them in training.

    Attributes:
        hidden_state: of the language model's hidden states, the embeddings first, counted as
            Python counts.
        max_tokens: of a caption, the mark of its beginning included.
        marks_end: whether a mark of the end follows the last token.
    """

    hidden_state: int
    max_tokens: int
    marks_end: bool = False


@dataclass(frozen=True)
class Family:
    """What is known of one kind of network.

    Attributes:
        name: `_class_name` in a bundle's `transformer/config.json`.
        network: makes one from a config.
        config: of its networks, a dataclass.
        named_configs: sizes that have a name.
        position_tables: (rows, columns, config) to the tables [N, A] and [N, B] of a grid.
        trained_side: tokens an axis that most of its training had.
        check_size: (rows, columns, config); raises `ValueError` for a grid it cannot do.
        prediction: what a network returns, `VELOCITY` or `NOISE`.
        samplers: update rules its training allows, the plainest first.
        guidance_power: of the power-cosine course its published guidance has; 0 is constant.
        captions: how it reads them; None for a family that is told a class.
        scaling_at: (rows, columns, config, timestep) to how tables are stretched then, which
            `position_tables` takes as a fourth argument; None where tables never change.
        time_shift: how far its schedule is bent towards noise; 1 is an even one.
        usual_steps, usual_guidance: what its authors sample with.
        text_encoder: where the language model is, for people.
    """

    name: str
    network: Callable[[Any], Network]
    config: type[Any]
    named_configs: Mapping[str, NetworkConfig]
    position_tables: Callable[..., tuple[Tensor, Tensor]]
    trained_side: Callable[[Any], int]
    check_size: Callable[[int, int, Any], None]
    prediction: Callable[[Any], str] = lambda config: config.prediction
    samplers: tuple[str, ...] = ()
    guidance_power: Callable[[Any], float] = lambda _config: 0.0
    captions: CaptionReading | None = None
    scaling_at: Callable[[int, int, Any, float], RopeScaling] | None = None
    time_shift: Callable[[Any], float] = lambda _config: 1.0
    usual_steps: int = 25
    usual_guidance: float = 1.5
    text_encoder: str = ""


def _fitv2_positions(rows: int, columns: int, config: ModelConfig) -> tuple[Tensor, Tensor]:
    return rope_table(rows, columns, config.head_dim, config.rope)


def _any_size(rows: int, columns: int, config: ModelConfig) -> None:
    """FiTv2 takes every grid there is."""


def _always(prediction: str) -> Callable[[Any], str]:
    return lambda _config: prediction


_FAMILIES = (
    Family(
        name="FiTv2",
        network=FiTv2,
        config=ModelConfig,
        named_configs=NAMED_CONFIGS,
        position_tables=_fitv2_positions,
        trained_side=lambda config: config.rope.ori_max_pe_len,
        check_size=_any_size,
        prediction=_always(VELOCITY),
    ),
    Family(
        name="FiTv1",
        network=FiTv1,
        config=FiTv1Config,
        named_configs=NAMED_FITV1_CONFIGS,
        position_tables=fitv1_config.position_tables,
        trained_side=lambda config: config.rope.ori_max_pe_len,
        check_size=fitv1_config.check_size,
        prediction=_always(NOISE),
    ),
    Family(
        name="DiT",
        network=DiT,
        config=DiTConfig,
        named_configs=NAMED_DIT_CONFIGS,
        position_tables=dit_config.position_tables,
        trained_side=lambda config: config.trained_grid,
        check_size=dit_config.check_size,
    ),
    Family(
        name="MDT",
        network=MDT,
        config=MDTConfig,
        named_configs=NAMED_MDT_CONFIGS,
        position_tables=mdt_config.position_tables,
        trained_side=lambda config: config.side,
        check_size=mdt_config.check_size,
        prediction=_always(NOISE),
        guidance_power=lambda _config: mdt_config.GUIDANCE_POWER,
    ),
    Family(
        name="DiffiT",
        network=DiffiT,
        config=DiffiTConfig,
        named_configs=NAMED_DIFFIT_CONFIGS,
        position_tables=diffit_config.position_tables,
        trained_side=lambda config: config.side,
        check_size=diffit_config.check_size,
        prediction=_always(NOISE),
        guidance_power=lambda config: config.guidance_power,
    ),
    Family(
        name="DiMR",
        network=DiMR,
        config=DiMRConfig,
        named_configs=NAMED_DIMR_CONFIGS,
        position_tables=dimr_config.position_tables,
        trained_side=lambda config: config.side,
        check_size=dimr_config.check_size,
        prediction=_always(NOISE),
        samplers=tuple(SOLVERS),
    ),
    Family(
        name="FlagDiT",
        network=FlagDiT,
        config=FlagDiTConfig,
        named_configs=NAMED_FLAG_DIT_CONFIGS,
        position_tables=flag_dit_config.position_tables,
        trained_side=lambda config: config.trained_side,
        check_size=flag_dit_config.check_size,
    ),
    Family(
        name="NextDiT",
        network=NextDiT,
        config=NextDiTConfig,
        named_configs=NAMED_NEXT_DIT_CONFIGS,
        position_tables=next_dit_config.position_tables,
        trained_side=lambda _config: 16,  # latents of 32x32 in every release
        check_size=next_dit_config.check_size,
        prediction=_always(VELOCITY),
    ),
    Family(
        name="TerDiT",
        network=TerDiT,
        config=TerDiTConfig,
        named_configs=NAMED_TERDIT_CONFIGS,
        position_tables=terdit_config.position_tables,
        trained_side=lambda config: config.trained_grid,
        check_size=terdit_config.check_size,
        prediction=_always(NOISE),
    ),
    Family(
        name="LuminaNext",
        network=LuminaNext,
        config=LuminaNextConfig,
        named_configs=NAMED_LUMINA_NEXT_CONFIGS,
        position_tables=lumina_next_config.position_tables,
        trained_side=lambda config: config.trained_side,
        check_size=lumina_next_config.check_size,
        prediction=_always(VELOCITY),
        samplers=tuple(ALONG),
        captions=CaptionReading(hidden_state=-2, max_tokens=256),
        text_encoder="huggingface.co/google/gemma-2b",
        scaling_at=lumina_next_config.scaling_at,
        time_shift=lambda config: config.time_shift,
        usual_steps=30,
        usual_guidance=4.0,
    ),
    Family(
        name="LuminaT2I",
        network=LuminaT2I,
        config=LuminaT2IConfig,
        named_configs=NAMED_LUMINA_T2I_CONFIGS,
        position_tables=lumina_t2i_config.position_tables,
        trained_side=lambda config: config.trained_side,
        check_size=lumina_t2i_config.check_size,
        prediction=_always(VELOCITY),
        samplers=tuple(ALONG),
        captions=CaptionReading(hidden_state=-1, max_tokens=4096, marks_end=True),
        text_encoder="huggingface.co/meta-llama/Llama-2-7b-hf",
        time_shift=lambda config: config.time_shift,
        usual_steps=30,
        usual_guidance=4.0,
    ),
)
FAMILIES: dict[str, Family] = {family.name: family for family in _FAMILIES}
_OF_CONFIG: dict[type, Family] = {family.config: family for family in _FAMILIES}


def family_of(config: NetworkConfig) -> Family:
    """The family that a config is of."""
    return _OF_CONFIG[type(config)]


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


def placement(network: Network) -> tuple[torch.device, torch.dtype]:
    """Where a network's weights are, and what they are."""
    weight = next(p for p in network.parameters() if p.is_floating_point())
    return weight.device, weight.dtype


def position_tables(
    rows: int, columns: int, config: NetworkConfig, scaling: RopeScaling | None = None
) -> tuple[Tensor, Tensor]:
    """What a token's position means to a network: [N, A] and [N, B], N row-major.

    Args:
        rows, columns: tokens.
        config: of the network.
        scaling: of `table_keys`, for families whose tables change; None is theirs at no stretch.
    """
    make = family_of(config).position_tables
    return make(rows, columns, config) if scaling is None else make(rows, columns, config, scaling)


def table_keys(
    grid: tuple[int, int], config: NetworkConfig, trajectory: Trajectory
) -> tuple[TableKey, ...]:
    """By what the tables are known that each evaluation reads; none where a grid has one table."""
    scaling_at = family_of(config).scaling_at
    if scaling_at is None:
        return ()
    times = (evaluation.network_timestep for evaluation in trajectory.evaluations)
    return tuple((*grid, scaling_at(*grid, config, time)) for time in times)


def caption_reading(config: NetworkConfig) -> CaptionReading | None:
    """How a network reads captions; None for one that is told a class."""
    return family_of(config).captions


def position_widths(config: NetworkConfig) -> tuple[int, int]:
    """A and B of the tables of a network."""
    side = family_of(config).trained_side(config)
    first, second = position_tables(side, side, config)
    return first.shape[1], second.shape[1]


def config_named(size: str) -> NetworkConfig:
    """A named size of any family.

    Raises:
        ValueError: there is none of this name.
    """
    for family in _FAMILIES:
        if size in family.named_configs:
            return family.named_configs[size]
    known = (name for family in _FAMILIES for name in family.named_configs)
    raise ValueError(f"size {size!r} is unknown; known: {', '.join(known)}")


def takes_grid(rows: int, columns: int, config: NetworkConfig) -> bool:
    """Whether a network can do a grid."""
    try:
        family_of(config).check_size(rows, columns, config)
    except ValueError:
        return False
    return True


def prediction_of(config: NetworkConfig) -> str:
    """What a network returns, `VELOCITY` or `NOISE`."""
    return family_of(config).prediction(config)


def samplers_of(config: NetworkConfig) -> tuple[str, ...]:
    """Update rules that a network's training allows, the plainest first."""
    own = family_of(config).samplers
    return own or tuple(DISCRETE_SAMPLERS if prediction_of(config) == NOISE else SAMPLERS)


def trajectory_of(config: NetworkConfig, sampler: str, num_inference_steps: int) -> Trajectory:
    """All evaluations of a sequence under a named sampler.

    Raises:
        ValueError: the network is not sampled so, or the number of steps cannot be.
    """
    rules = samplers_of(config)
    if sampler not in ALL_SAMPLERS:
        raise ValueError(f"sampler {sampler!r} is unknown; known: {', '.join(rules)}")
    if sampler not in rules:
        raise ValueError(
            f"sampler {sampler!r} is not for {family_of(config).name}, which predicts the "
            f"{prediction_of(config)}{_along(config)}; known: {', '.join(rules)}"
        )
    if sampler in SOLVERS:
        return SOLVERS[sampler](num_inference_steps)
    if sampler in DISCRETE_SAMPLERS:
        learned = config.output_channels > config.token_channels
        return make_discrete_trajectory(sampler, num_inference_steps, learned)
    shift = family_of(config).time_shift(config)
    if shift != 1.0:
        return shifted_trajectory(sampler, num_inference_steps, shift)
    return make_trajectory(sampler, num_inference_steps)


def _along(config: NetworkConfig) -> str:
    shift = family_of(config).time_shift(config)
    return "" if shift == 1.0 else f" along a schedule bent by {shift:g}"


def guidance_scale_at(config: NetworkConfig, guidance: Guidance, evaluation: Evaluation) -> float:
    """How strong guidance is at an evaluation; exactly 1.0 where no second branch is needed."""
    scale = guidance.scale_at(evaluation.sigma)
    power = family_of(config).guidance_power(config)
    if scale == 1.0 or not power:
        return scale
    return power_cosine_scale(scale, power, evaluation.network_timestep)
