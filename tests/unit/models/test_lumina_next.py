"""Lumina-Next equals the authors' own code on everything recorded; captions are computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from fit_models.captions import CaptionStates, caption_alone, join_captions, pack_captions
from fit_models.diffusion.shifted_flow import from_strength, shifted_times, shifted_trajectory
from fit_models.networks.lumina_next import LuminaNext
from fit_models.networks.lumina_next_config import (
    NAMED_LUMINA_NEXT_CONFIGS,
    RELEASES,
    LuminaNextConfig,
    check_size,
    position_tables,
    scaling_at,
)
from fit_models.networks.lumina_positions import UNSCALED, RopeScaling, time_aware_scaling
from fit_models.positions import layout_of_tables
from support.golden import Case, load_family
from support.lumina import (
    Loop,
    captions_of,
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

FAMILY = load_family("lumina_next")
# Parameters and tensors of the state dict, counted on the authors' own modules.
COUNTED = {
    "Lumina-Next-2B": (1_627_386_400, 567),
    "Lumina-Next-2B-MHA": (1_988_524_576, 567),
}


def network_of(case: Case) -> LuminaNext:
    """With the temperature of the case: the originals' plain forward has the usual one."""
    official = case.params.get("cfg_kwargs", {})
    config = LuminaNextConfig(
        **shape_of_official(case.config),
        caption_channels=case.config["cap_feat_dim"],
        proportional_base=official["base_seqlen"] if official.get("proportional_attn") else None,
    )
    return loaded(FAMILY, case, LuminaNext(config))


def predict_list(
    network: LuminaNext,
    captions: CaptionStates,
    latents: Sequence[Tensor],
    t_B: Tensor,
    scaling: RopeScaling = UNSCALED,
) -> list[Tensor]:
    grids = [grid_of(latent) for latent in latents]
    tables = partial(position_tables, config=network.config, scaling=scaling)
    out = network(pack_latents(latents), layout_of_tables(grids, tables), t_B, captions)
    return unpack_latents(out, grids)


def predict(
    network: LuminaNext,
    captions: CaptionStates,
    x_BChw: Tensor,
    t_B: Tensor,
    scaling: RopeScaling = UNSCALED,
) -> Tensor:
    return torch.stack(predict_list(network, captions, list(x_BChw), t_B, scaling))


def guided(
    network: LuminaNext, captions: CaptionStates, case: Case, x: Tensor, t_B: Tensor
) -> Tensor:
    p = case.params["cfg_kwargs"]
    scaling = time_aware_scaling(p["scale_factor"], p["scale_watershed"], float(t_B[0]))
    velocity = partial(predict, network, captions, scaling=scaling)
    return guided_halves(velocity, x, t_B, case.params["cfg_scale"])


def loop_of(case: Case) -> Loop:
    network = network_of(case).requires_grad_(False)
    captions = captions_of(network, case)
    return Loop(case, lambda x, t: guided(network, captions, case, x, torch.full((len(x),), t)))


@pytest.mark.parametrize("name", FAMILY.case_names("forward"))
def test_forward_equals_the_original(name: str) -> None:
    case = FAMILY.case(name)
    network = network_of(case).requires_grad_(False)
    captions = captions_of(network, case)
    case.check({"out": predict(network, captions, case.inputs["x"], case.inputs["t"])})


def test_a_mixed_pack_equals_the_original_padded_list() -> None:
    case = FAMILY.case("forward_list_mixed")
    network = network_of(case).requires_grad_(False)
    latents = [case.inputs[f"x{i}"] for i in range(3)]
    out = predict_list(network, captions_of(network, case), latents, case.inputs["t"])
    case.check({f"out{i}": latent for i, latent in enumerate(out)})


@pytest.mark.parametrize("name", FAMILY.case_names("forward_with_cfg"))
def test_guidance_equals_the_original_at_every_scaling(name: str) -> None:
    case = FAMILY.case(name)
    network = network_of(case).requires_grad_(False)
    captions = captions_of(network, case)
    case.check({"out": guided(network, captions, case, case.inputs["x"], case.inputs["t"])})


@pytest.mark.parametrize("name", FAMILY.case_names("sample_ode"))
def test_trajectories_equal_the_original(name: str) -> None:
    case = FAMILY.case(name)
    case.check(loop_of(case).integrate())
    p = case.params
    rows = shifted_trajectory(p["method"], p["num_steps"] - 1, p["shift"] or 1.0)
    states = loop_of(case).follow(rows)
    kept = torch.stack(states)[:, : len(states[0]) // 2]
    case.check({"states": kept, "final": states[-1]}, partial=True)


def test_image_to_image_equals_the_original() -> None:
    case = FAMILY.case("img2img")
    p = case.params
    grid = from_strength(shifted_times(p["num_steps"], p["shift"]).tolist(), p["strength"])
    times = torch.tensor(grid)
    case.check({"grid": times, **loop_of(case).integrate(times)})
    rows = shifted_trajectory(p["method"], p["num_steps"] - 1, p["shift"], p["strength"])
    states = loop_of(case).follow(rows)
    case.check({"final": states[-1]}, partial=True)


@pytest.mark.parametrize("name", ["loss", "grad"])
def test_loss_and_gradients_equal_the_original(name: str) -> None:
    case = FAMILY.case(name)
    network = network_of(case)
    velocity = partial(predict, network, captions_of(network, case))
    got = {"loss": loss_of(case, velocity)}
    if "grad_norms" in case.expected:
        got["grad_norms"] = gradient_norms(network, got["loss"], case.params["keys"])
    case.check(got)


@pytest.mark.parametrize("name", FAMILY.case_names("rope"))
def test_positions_equal_the_original(name: str) -> None:
    case = FAMILY.case(name)
    p = case.params
    config = LuminaNextConfig(hidden_size=p["head_dim"], depth=1, num_heads=1, caption_channels=1)
    scaling = time_aware_scaling(p["scale_factor"], p["scale_watershed"], p["timestep"])
    cos, sin = position_tables(128, 128, config, scaling)
    rows = torch.tensor([row * 128 + column for row, column in p["positions"]])
    case.check({"cos": cos[rows], "sin": sin[rows]})


def test_tables_follow_size_and_time_above_the_trained_area_only() -> None:
    config = NAMED_LUMINA_NEXT_CONFIGS["Lumina-Next-2B"]
    for grid in ((64, 64), (32, 128), (16, 16)):
        assert scaling_at(*grid, config, 0.0) == scaling_at(*grid, config, 1.0) == UNSCALED
    assert scaling_at(96, 96, config, 0.29) == RopeScaling(interpolation=1.5)
    assert scaling_at(96, 96, config, 0.3) == RopeScaling(base_factor=1.5)


def test_a_sequence_notices_neither_its_neighbours_nor_who_computed_its_caption() -> None:
    case = FAMILY.case("cfg_prop")
    network = network_of(case).requires_grad_(False)
    packed = captions_of(network, case)
    features, lengths = pack_captions(case.inputs["cap_feats"], case.inputs["cap_mask"])
    apart = [network.caption_states(part, [len(part)]) for part in features.split(list(lengths))]
    grids, order = [(4, 4), (2, 7), (5, 1), (5, 1), (3, 3)], [0, 1, 1, 2, 3]
    tokens = random_tokens(grids, network.config)
    tables = partial(position_tables, config=network.config)
    t = torch.linspace(0.1, 0.9, len(grids))
    captions = join_captions([apart[i] for i in order])
    together = network(torch.cat(tokens), layout_of_tables(grids, tables), t, captions)
    for i, part in enumerate(together.split([len(x) for x in tokens])):
        layout = layout_of_tables([grids[i]], tables)
        alone = network(tokens[i], layout, t[i : i + 1], caption_alone(packed, order[i]))
        torch.testing.assert_close(part, alone, atol=5e-5, rtol=0.0)


def test_rows_and_captions_made_beforehand_give_the_same() -> None:
    case = FAMILY.case("forward_6x10")
    network = network_of(case).requires_grad_(False)
    grids = [grid_of(case.inputs["x"])] * 3
    tokens = pack_latents(list(case.inputs["x"]))
    layout = layout_of_tables(grids, partial(position_tables, config=network.config))
    captions = captions_of(network, case)
    modulation = network.modulate(case.inputs["t"], captions.pooled, layout)
    out = network.denoise(tokens, layout, modulation, captions)
    assert torch.equal(out, network(tokens, layout, case.inputs["t"], captions))


@pytest.mark.parametrize("weight", [1.0, 0.01])
def test_half_precision_stays_near_even_where_norms_have_small_weights(weight: float) -> None:
    """Of a row w (1 + scale) - 1 in bf16 nothing would be left at w = 0.01 but rounding."""
    case = FAMILY.case("forward_8x8")
    network = network_of(case).requires_grad_(False)
    for name, parameter in network.named_parameters():
        if name.endswith("_norm1.weight"):
            parameter.mul_(weight)
    x, t = case.inputs["x"], case.inputs["t"]
    features, lengths = pack_captions(case.inputs["cap_feats"], case.inputs["cap_mask"])
    exact = predict(network, network.caption_states(features, lengths), x, t)
    half = network.to(torch.bfloat16)
    captions = half.caption_states(features.bfloat16(), lengths)
    out = predict(half, captions, x.bfloat16(), t)
    assert out.dtype == torch.bfloat16
    assert float((out.float() - exact).std() / exact.std()) < 0.02


def test_captions_that_do_not_fit_are_refused() -> None:
    case = FAMILY.case("forward_6x10")
    network = network_of(case).requires_grad_(False)
    captions = captions_of(network, case)
    features = case.inputs["cap_feats"]
    with pytest.raises(ValueError, match="every caption must have a token"):
        pack_captions(features, torch.zeros(3, 7))
    with pytest.raises(ValueError, match=r"7 caption tokens for lengths \[3, 3\]"):
        network.caption_states(features[0], [3, 3])
    with pytest.raises(ValueError, match="3 captions for 1 sequences"):
        predict(network, captions, case.inputs["x"][:1], case.inputs["t"][:1])
    with pytest.raises(ValueError, match="no captions to join"):
        join_captions([])


@pytest.mark.parametrize("name", COUNTED)
def test_named_sizes_have_exactly_their_parameters(name: str) -> None:
    with torch.device("meta"):
        network = LuminaNext(NAMED_LUMINA_NEXT_CONFIGS[name])
    assert parameters_and_keys(network) == COUNTED[name]


def test_a_config_survives_its_file_and_refuses_nonsense() -> None:
    for config in NAMED_LUMINA_NEXT_CONFIGS.values():
        assert LuminaNextConfig.from_dict(config.to_dict()) == config
    assert all(release.config_name in NAMED_LUMINA_NEXT_CONFIGS for release in RELEASES)
    values = NAMED_LUMINA_NEXT_CONFIGS["Lumina-Next-2B"].to_dict()
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"num_classes": 3}, "unknown model config keys"),
        ({"caption_channels": 0}, "caption_channels is 0; it must be at least 1"),
        ({"proportional_base": 1}, "proportional_base is 1; it must be at least 2, or None"),
        ({"watershed": 1.5}, r"watershed is 1.5; it must be in \[0, 1\]"),
        ({"trained_side": 0}, "trained_side is 0"),
    ]
    for changes, message in wrong:
        with pytest.raises(ValueError, match=message):
            LuminaNextConfig.from_dict({**values, **changes})
    del values["caption_channels"]
    with pytest.raises(ValueError, match="caption_channels"):
        LuminaNextConfig.from_dict(values)


def test_sizes_end_with_the_rotary_table() -> None:
    config = NAMED_LUMINA_NEXT_CONFIGS["Lumina-Next-2B"]
    check_size(384, 384, replace(config, trained_side=32))
    with pytest.raises(ValueError, match="0x7 tokens has no positions"):
        check_size(0, 7, config)
