"""DiT equals the authors' own code, and diffusers' port of it, on every recorded forward."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from fit_models.diffusion.guidance import guide
from fit_models.networks.dit import DiT
from fit_models.networks.dit_config import NAMED_DIT_CONFIGS, DiTConfig
from fit_models.sincos import sincos_table
from support.discrete_networks import Subject, subject_of
from support.golden import Case, load_family

FAMILIES = {name: load_family(name) for name in ("dit", "dit_diffusers")}
FORWARD = [(f, c) for f, family in FAMILIES.items() for c in family.case_names("forward")]
GUIDED = FAMILIES["dit"].case_names("forward_with_cfg")


def run(subject: Subject, case: Case, position_factor: float = 1.0) -> torch.Tensor:
    x = case.inputs["x"]
    grids = subject.grids(case, x)
    layout = subject.layout(grids)
    layout = replace(layout, rope_cos=layout.rope_cos * position_factor)
    out = subject.network(subject.pack(x, grids), layout, case.inputs["t"], case.inputs["y"].long())
    return subject.unpack(out, grids, x)


@pytest.mark.parametrize(("family_name", "case_name"), FORWARD)
def test_forward_equals_the_original(family_name: str, case_name: str) -> None:
    family = FAMILIES[family_name]
    case = family.case(case_name)
    case.check({"out": run(subject_of(family, case), case, case.params.get("pos_mul", 1.0))})


@pytest.mark.parametrize("case_name", GUIDED)
def test_guidance_moves_three_channels_and_keeps_the_rest(case_name: str) -> None:
    family = FAMILIES["dit"]
    case = family.case(case_name)
    subject = subject_of(family, case)
    x = case.inputs["x"]
    half = x[: len(x) // 2]
    grids = subject.grids(case, x)
    out = subject.network(
        subject.pack(torch.cat((half, half)), grids),
        subject.layout(grids),
        case.inputs["t"],
        case.inputs["y"].long(),
    )
    conditional, null = out.chunk(2)
    guided_channels = subject.config.guided_token_channels
    scale = torch.full((len(conditional), 1), case.params["cfg_scale"])
    moved = guide(conditional, null, scale, guided_channels)
    of_null_half = torch.cat((moved[:, :guided_channels], null[:, guided_channels:]), dim=1)
    case.check({"out": subject.unpack(torch.cat((moved, of_null_half)), grids, x)})


def test_the_time_features_equal_the_original() -> None:
    family = FAMILIES["dit"]
    case = family.case("time_embedding")
    network = subject_of(family, case).network
    assert isinstance(network, DiT)
    t = case.inputs["t"]
    case.check({"tfreq": network.t_embedder.features(t), "temb": network.t_embedder(t)})


@pytest.mark.parametrize("case_name", FAMILIES["dit"].case_names("pos"))
def test_the_positions_equal_the_original(case_name: str) -> None:
    case = FAMILIES["dit"].case(case_name)
    grid = case.params["grid"]
    case.check({"pos": sincos_table(grid, grid, case.params["dim"])[case.params["rows"]]})


@pytest.mark.parametrize("positions", ["integer", "rescaled"])
def test_a_sequence_does_not_notice_its_neighbours(positions: str) -> None:
    family = FAMILIES["dit"]
    trained = subject_of(family, family.case("forward_tiny_8x8")).network
    assert isinstance(trained, DiT)
    network = DiT(replace(trained.config, positions=positions))
    network.load_state_dict(trained.state_dict())
    subject = Subject(network.eval().requires_grad_(False))
    grids = [(3, 5), (4, 4), (1, 1), (3, 5), (2, 9)]
    generator = torch.Generator().manual_seed(0)
    tokens = [torch.randn(h * w, 16, generator=generator) for h, w in grids]
    t = torch.tensor([0, 250, 500, 750, 999])
    y = torch.arange(len(grids)) * 7
    together = subject.network(torch.cat(tokens), subject.layout(grids), t, y)
    start = 0
    for i, grid in enumerate(grids):
        layout = subject.layout([grid])
        alone = subject.network(tokens[i], layout, t[i : i + 1], y[i : i + 1])
        torch.testing.assert_close(together[start : start + len(alone)], alone, atol=2e-5, rtol=0.0)
        start += len(alone)


def test_sit_is_dit_without_the_variance() -> None:
    family = FAMILIES["dit"]
    case = family.case("forward_tiny_8x8")
    noise = subject_of(family, case)
    assert isinstance(noise.network, DiT)
    network = DiT(replace(noise.network.config, prediction="velocity"))
    network.load_state_dict(noise.network.state_dict(), strict=True)
    velocity = run(Subject(network), case)
    assert velocity.shape[1] == 4
    torch.testing.assert_close(velocity, case.expected["out"][:, :4], atol=5e-5, rtol=0.0)


def test_rescaled_positions_are_the_trained_ones_on_the_trained_grid() -> None:
    assert torch.equal(sincos_table(16, 16, 96, trained_grid=16), sincos_table(16, 16, 96))
    wide = sincos_table(4, 8, 96, trained_grid=4)
    assert torch.equal(wide[::2], sincos_table(4, 4, 96))


def test_weights_with_learned_positions_are_refused() -> None:
    network = DiT(DiTConfig(hidden_size=48, depth=1, num_heads=2, num_classes=3, trained_grid=4))
    state = network.state_dict()
    state["pos_embed"] = state["pos_embed"] + 0.1
    with pytest.raises(ValueError, match=r"pos_embed differs by 0\.1 from the sine-cosine table"):
        network.load_state_dict(state)


def test_half_precision_weights_are_taken() -> None:
    config = DiTConfig(hidden_size=48, depth=1, num_heads=2, num_classes=3, trained_grid=4)
    stored = {name: tensor.bfloat16() for name, tensor in DiT(config).state_dict().items()}
    with torch.device("meta"):
        network = DiT(config)
    network.load_state_dict(stored, strict=True, assign=True)
    assert {p.dtype for p in network.parameters()} == {torch.bfloat16}


def test_the_state_dict_has_the_released_names_and_shapes() -> None:
    family = FAMILIES["dit"]
    shapes = {n: tuple(v.shape) for n, v in DiT(tiny_config()).state_dict().items()}
    assert shapes == family.shapes("tiny")


def tiny_config() -> DiTConfig:
    subject = subject_of(FAMILIES["dit"], FAMILIES["dit"].case("forward_tiny_8x8"))
    assert isinstance(subject.config, DiTConfig)
    return subject.config


def test_a_fresh_network_answers_zero() -> None:
    network = DiT(replace(NAMED_DIT_CONFIGS["DiT-S/2"], depth=1, num_classes=3))
    network.initialize()
    subject = Subject(network)
    out = network(
        torch.randn(6, 16), subject.layout([(2, 3)]), torch.tensor([5]), torch.tensor([1])
    )
    assert out.shape == (6, 32)
    assert not out.any()


@pytest.mark.parametrize(
    ("family_name", "case_name", "changes"),
    [
        ("dit_diffusers", "forward", {"frequency_divisor": 128}),
        ("dit_diffusers", "forward_12x12", {"positions": "integer"}),
        ("dit", "forward_tiny_8x8", {"frequency_divisor": 127}),
        ("dit", "forward_eps_probe", {"mlp_norm_eps": 1e-5}),
    ],
)
def test_the_port_and_the_original_are_told_apart(
    family_name: str, case_name: str, changes: dict[str, Any]
) -> None:
    family = FAMILIES[family_name]
    case = family.case(case_name)
    right = subject_of(family, case).network
    assert isinstance(right, DiT)
    wrong = DiT(replace(right.config, **changes))
    wrong.load_state_dict(right.state_dict())
    out = run(Subject(wrong.eval()), case, case.params.get("pos_mul", 1.0))
    assert case.excess("out", out) > 5.0
