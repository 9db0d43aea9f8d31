"""Next-DiT equals the authors' own code on everything recorded."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from fit_models.diffusion.sampler import sde_euler
from fit_models.diffusion.shifted_flow import ALONG, shifted_sigmas
from fit_models.networks.next_dit import NextDiT
from fit_models.networks.next_dit_config import (
    NAMED_NEXT_DIT_CONFIGS,
    RELEASES,
    NextDiTConfig,
    check_size,
    position_tables,
)
from fit_models.positions import layout_of_tables
from support.golden import Case, load_family
from support.lumina import (
    Loop,
    gradient_norms,
    grid_of,
    guided_halves,
    loaded,
    loss_of,
    pack_latents,
    parameters_and_keys,
    random_tokens,
    shape_of_official,
    unpack_latents,
)

FAMILY = load_family("next_dit")
# Parameters and tensors of the state dict, counted on the authors' own modules.
COUNTED = {
    "Next-DiT-600M": (559_455_776, 251),
    "Next-DiT-2B": (1_763_043_104, 371),
    "Next-DiT-3B": (4_036_300_832, 491),
    "Next-DiT-7B": (7_025_122_336, 491),
}


def network_of(case: Case) -> NextDiT:
    config = NextDiTConfig(**shape_of_official(case.config), num_classes=case.config["num_classes"])
    return loaded(FAMILY, case, NextDiT(config))


def predict(
    network: NextDiT, config: NextDiTConfig, label_B: Tensor, x_BChw: Tensor, t_B: Tensor
) -> Tensor:
    """The original's forward out of ours; positions as a config says."""
    grids = [grid_of(x_BChw)] * len(x_BChw)
    check_size(*grids[0], config)
    layout = layout_of_tables(grids, partial(position_tables, config=config))
    out = network(pack_latents(list(x_BChw)), layout, t_B, label_B)
    return torch.stack(unpack_latents(out, grids))


def guided(network: NextDiT, case: Case, x: Tensor, t_B: Tensor) -> Tensor:
    official = case.params.get("cfg_kwargs", {})
    config = replace(
        network.config,
        rope_interpolation=official.get("rope_scaling_factor", 1.0),
        rope_base_factor=official.get("ntk_factor", 1.0),
    )
    velocity = partial(predict, network, config, case.inputs["y"])
    return guided_halves(velocity, x, t_B, case.params["cfg_scale"])


def loop_of(case: Case) -> Loop:
    network = network_of(case).requires_grad_(False)
    if case.params.get("dtype") == "float64":
        network = network.double()
    return Loop(case, lambda x, t: guided(network, case, x, torch.full((len(x),), t)))


@pytest.mark.parametrize("name", FAMILY.case_names("forward"))
def test_forward_equals_the_original(name: str) -> None:
    case = FAMILY.case(name)
    network = network_of(case).requires_grad_(False)
    inputs = case.inputs
    case.check({"out": predict(network, network.config, inputs["y"], inputs["x"], inputs["t"])})


@pytest.mark.parametrize("name", FAMILY.case_names("forward_with_cfg"))
def test_guidance_equals_the_original_at_every_scaling(name: str) -> None:
    case = FAMILY.case(name)
    network = network_of(case).requires_grad_(False)
    case.check({"out": guided(network, case, case.inputs["x"], case.inputs["t"])})


@pytest.mark.parametrize("name", FAMILY.case_names("sample_ode"))
def test_integrated_trajectories_equal_the_original(name: str) -> None:
    case = FAMILY.case(name)
    case.check(loop_of(case).integrate())


@pytest.mark.parametrize("name", ["ode_euler", "ode_midpoint"])
def test_trajectories_of_coefficient_rows_equal_the_original(name: str) -> None:
    case = FAMILY.case(name)
    sigmas = shifted_sigmas(case.params["num_steps"] - 1, 1.0)
    states = loop_of(case).follow(ALONG[case.params["method"]](sigmas))
    kept = torch.stack(states)[:, : len(states[0]) // 2]
    case.check({"states": kept, "final": states[-1]}, partial=True)


def test_the_sde_equals_the_original_with_half_its_evaluations() -> None:
    case = FAMILY.case("sde_euler_sigma")
    p, loop = case.params, loop_of(case)
    trajectory = sde_euler(
        p["num_steps"],
        p["diffusion_form"],
        p["diffusion_norm"],
        p["last_step"].lower(),
        p["last_step_size"],
    )
    states = loop.follow(trajectory, case.inputs["noise"])
    kept = torch.stack(states)[:, : len(states[0]) // 2]
    twice = torch.tensor(loop.calls).repeat_interleave(2)  # drift and score ask apart there
    nfe = torch.tensor(float(len(twice)))
    case.check({"states": kept, "final": states[-1], "t_eval": twice, "nfe": nfe})


@pytest.mark.parametrize("name", ["loss", "grad"])
def test_loss_and_gradients_equal_the_original(name: str) -> None:
    case = FAMILY.case(name)
    network = network_of(case)
    velocity = partial(predict, network, network.config, case.inputs["y"])
    got = {"loss": loss_of(case, velocity)}
    if "grad_norms" in case.expected:
        got["grad_norms"] = gradient_norms(network, got["loss"], case.params["keys"])
    case.check(got)


@pytest.mark.parametrize("name", FAMILY.case_names("rope"))
def test_positions_equal_the_original(name: str) -> None:
    case = FAMILY.case(name)
    p = case.params
    config = NextDiTConfig(
        hidden_size=p["head_dim"],
        depth=1,
        num_heads=1,
        rope_interpolation=p["rope_scaling_factor"],
        rope_base_factor=p["ntk_factor"],
    )
    cos, sin = position_tables(384, 201, config)
    rows = torch.tensor([row * 201 + column for row, column in p["positions"]])
    case.check({"cos": cos[rows], "sin": sin[rows]})


def test_a_sequence_does_not_notice_its_neighbours() -> None:
    network = network_of(FAMILY.case("forward_8x8")).requires_grad_(False)
    grids = [(4, 4), (2, 7), (5, 1), (5, 1)]
    tokens = random_tokens(grids, network.config)
    tables = partial(position_tables, config=network.config)
    t, y = torch.linspace(0.1, 0.9, len(grids)), torch.tensor([3, 1000, 7, 8])
    together = network(torch.cat(tokens), layout_of_tables(grids, tables), t, y)
    for i, part in enumerate(together.split([len(x) for x in tokens])):
        layout = layout_of_tables([grids[i]], tables)
        alone = network(tokens[i], layout, t[i : i + 1], y[i : i + 1])
        torch.testing.assert_close(part, alone, atol=2e-5, rtol=0.0)


@pytest.mark.parametrize("name", COUNTED)
def test_named_sizes_have_exactly_their_parameters(name: str) -> None:
    with torch.device("meta"):
        network = NextDiT(NAMED_NEXT_DIT_CONFIGS[name])
    assert parameters_and_keys(network) == COUNTED[name]


def test_a_config_survives_its_file_and_refuses_nonsense() -> None:
    for config in NAMED_NEXT_DIT_CONFIGS.values():
        assert NextDiTConfig.from_dict(config.to_dict()) == config
    assert all(release.config_name in NAMED_NEXT_DIT_CONFIGS for release in RELEASES)
    values = NAMED_NEXT_DIT_CONFIGS["Next-DiT-600M"].to_dict()
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"width": 3}, "unknown model config keys"),
        ({"num_classes": 0}, "num_classes is 0; it must be at least 1"),
        ({"rope_interpolation": 0.0}, "rope_interpolation is 0.0; it must be above 0"),
        ({"multiple_of": 0}, "multiple_of is 0; it must be at least 1"),
    ]
    for changes, message in wrong:
        with pytest.raises(ValueError, match=message):
            NextDiTConfig.from_dict({**values, **changes})


def test_sizes_end_with_the_rotary_table() -> None:
    config = NAMED_NEXT_DIT_CONFIGS["Next-DiT-600M"]
    check_size(384, 1, config)
    with pytest.raises(ValueError, match=r"385x1 tokens has no positions; .* in 1..384 tokens"):
        check_size(385, 1, config)
