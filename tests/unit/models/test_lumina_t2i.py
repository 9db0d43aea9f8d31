"""Lumina-T2I equals the authors' own code on everything recorded; line ends stay inside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from fit_models.captions import CaptionStates, caption_alone
from fit_models.diffusion.shifted_flow import shifted_trajectory
from fit_models.networks.lumina_positions import RopeScaling
from fit_models.networks.lumina_t2i import LuminaT2I
from fit_models.networks.lumina_t2i_config import (
    NAMED_LUMINA_T2I_CONFIGS,
    RELEASES,
    LuminaT2IConfig,
    check_size,
    position_tables,
    scaling_of,
)
from fit_models.positions import layout_of_tables
from support.golden import Case, load_family
from support.lumina import (
    Loop,
    captions_of,
    grid_of,
    guided_halves,
    loaded,
    pack_latents,
    parameters_and_keys,
    random_tokens,
    shape_of_official,
    unpack_latents,
)

FAMILY = load_family("lumina_t2i")


def network_of(case: Case) -> LuminaT2I:
    """With temperature and scaling of the case: the originals' plain forward has the usual ones."""
    official = case.params.get("cfg_kwargs", {})
    config = LuminaT2IConfig(
        **shape_of_official(case.config),
        caption_channels=case.config["cap_feat_dim"],
        proportional_base=official["base_seqlen"] if official.get("proportional_attn") else None,
        rope_interpolation=official.get("rope_scaling_factor", 1.0),
        rope_base_factor=official.get("ntk_factor", 1.0),
    )
    return loaded(FAMILY, case, LuminaT2I(config)).requires_grad_(False)


def predict_list(
    network: LuminaT2I, captions: CaptionStates, latents: Sequence[Tensor], t_B: Tensor
) -> list[Tensor]:
    grids = [grid_of(latent) for latent in latents]
    layout = layout_of_tables(grids, partial(position_tables, config=network.config))
    return unpack_latents(network(pack_latents(latents), layout, t_B, captions), grids)


def predict(network: LuminaT2I, captions: CaptionStates, x_BChw: Tensor, t_B: Tensor) -> Tensor:
    return torch.stack(predict_list(network, captions, list(x_BChw), t_B))


def guided(
    network: LuminaT2I, captions: CaptionStates, case: Case, x: Tensor, t_B: Tensor
) -> Tensor:
    return guided_halves(partial(predict, network, captions), x, t_B, case.params["cfg_scale"])


def loop_of(case: Case) -> Loop:
    network = network_of(case)
    captions = captions_of(network, case)
    return Loop(case, lambda x, t: guided(network, captions, case, x, torch.full((len(x),), t)))


@pytest.mark.parametrize("name", FAMILY.case_names("forward"))
def test_forward_equals_the_original(name: str) -> None:
    case = FAMILY.case(name)
    network = network_of(case)
    captions = captions_of(network, case)
    case.check({"out": predict(network, captions, case.inputs["x"], case.inputs["t"])})


def test_a_mixed_pack_equals_the_original_padded_list() -> None:
    case = FAMILY.case("forward_list_mixed")
    network = network_of(case)
    latents = [case.inputs[f"x{i}"] for i in range(2)]
    out = predict_list(network, captions_of(network, case), latents, case.inputs["t"])
    case.check({f"out{i}": latent for i, latent in enumerate(out)})


@pytest.mark.parametrize("name", FAMILY.case_names("forward_with_cfg"))
def test_guidance_equals_the_original_at_every_scaling(name: str) -> None:
    case = FAMILY.case(name)
    network = network_of(case)
    captions = captions_of(network, case)
    case.check({"out": guided(network, captions, case, case.inputs["x"], case.inputs["t"])})


@pytest.mark.parametrize("name", FAMILY.case_names("sample_ode"))
def test_trajectories_equal_the_original(name: str) -> None:
    case = FAMILY.case(name)
    case.check(loop_of(case).integrate())
    p = case.params
    states = loop_of(case).follow(shifted_trajectory(p["method"], p["num_steps"] - 1, p["shift"]))
    kept = torch.stack(states)[:, : len(states[0]) // 2]
    case.check({"states": kept, "final": states[-1]}, partial=True)


def test_a_sequence_does_not_notice_its_neighbours() -> None:
    case = FAMILY.case("forward_8x8")
    network = network_of(case)
    captions = captions_of(network, case)
    grids = [(4, 4), (2, 7), (5, 1)]
    tokens = random_tokens(grids, network.config)
    tables = partial(position_tables, config=network.config)
    t = torch.linspace(0.1, 0.9, len(grids))
    together = network(torch.cat(tokens), layout_of_tables(grids, tables), t, captions)
    for i, part in enumerate(together.split([len(x) for x in tokens])):
        layout = layout_of_tables([grids[i]], tables)
        alone = network(tokens[i], layout, t[i : i + 1], caption_alone(captions, i))
        torch.testing.assert_close(part, alone, atol=2e-5, rtol=0.0)


def test_line_ends_need_grids() -> None:
    case = FAMILY.case("forward_8x8")
    network = network_of(case)
    captions = caption_alone(captions_of(network, case), 0)
    layout = layout_of_tables([(2, 3)], partial(position_tables, config=network.config))
    tokens = torch.zeros(6, network.config.token_channels)
    with pytest.raises(ValueError, match="do not cover 6 tokens: line ends need the rows"):
        network(tokens, replace(layout, grids=()), torch.zeros(1), captions)


def test_the_named_size_has_exactly_its_parameters() -> None:
    with torch.device("meta"):
        network = LuminaT2I(NAMED_LUMINA_T2I_CONFIGS["Lumina-T2I-5B"])
    assert parameters_and_keys(network) == (5_046_643_744, 688)


def test_tables_are_stretched_by_area_above_the_trained_one() -> None:
    config = NAMED_LUMINA_T2I_CONFIGS["Lumina-T2I-5B"]
    assert scaling_of(64, 64, config) == RopeScaling()
    assert scaling_of(104, 104, config) == RopeScaling(base_factor=2.640625)


def test_a_config_survives_its_file_and_refuses_nonsense() -> None:
    config = NAMED_LUMINA_T2I_CONFIGS["Lumina-T2I-5B"]
    assert LuminaT2IConfig.from_dict(config.to_dict()) == config
    assert all(release.config_name in NAMED_LUMINA_T2I_CONFIGS for release in RELEASES)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"watershed": 0.3}, "unknown model config keys"),
        ({"rope_base_factor": 0.0}, "rope_base_factor is 0.0; it must be above 0"),
        ({"rope_interpolation": -1.0}, "rope_interpolation is -1.0; it must be above 0"),
    ]
    for changes, message in wrong:
        with pytest.raises(ValueError, match=message):
            LuminaT2IConfig.from_dict({**config.to_dict(), **changes})


def test_sizes_end_with_the_rotary_table() -> None:
    config = NAMED_LUMINA_T2I_CONFIGS["Lumina-T2I-5B"]
    check_size(199, 200, config)
    with pytest.raises(ValueError, match=r"40200 tokens with its line ends; .* for 40000"):
        check_size(200, 200, config)
