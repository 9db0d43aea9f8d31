"""Flag-DiT and Large-DiT equal the authors' own code on everything recorded."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from fit_models.diffusion.discrete import discrete_path
from fit_models.diffusion.discrete_loss import discrete_inputs, discrete_loss
from fit_models.diffusion.discrete_sampler import DiscreteEvaluation, ddpm, scaled_noise
from fit_models.diffusion.sampler import sde_euler
from fit_models.diffusion.shifted_flow import ALONG, shifted_sigmas
from fit_models.networks.flag_dit import FlagDiT
from fit_models.networks.flag_dit_config import (
    NAMED_FLAG_DIT_CONFIGS,
    RELEASES,
    FlagDiTConfig,
    check_size,
    position_tables,
)
from fit_models.positions import layout_of_tables
from support.golden import Case, Family, load_family
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

FLAG, LARGE = load_family("flag_dit"), load_family("large_dit")
# Parameters and tensors of the state dict, counted on the authors' own modules.
COUNTED = {
    "Flag-DiT-600M": (609_836_576, 251),
    "Flag-DiT-3B": (4_237_824_032, 491),
    "Flag-DiT-7B": (7_293_819_936, 491),
    "Large-DiT-3B": (4_237_824_032, 491),
    "Large-DiT-7B": (7_293_819_936, 491),
}
ODE = {"euler": "euler", "midpoint": "midpoint", "heun2": "heun"}


def network_of(family: Family, case: Case) -> FlagDiT:
    values = case.config
    config = FlagDiTConfig(
        **shape_of_official(values),
        num_classes=values["num_classes"],
        prediction="noise" if family is LARGE else "velocity",
        trained_side=values["input_size"] // values["patch_size"],
    )
    return loaded(family, case, FlagDiT(config))


def predict(network: FlagDiT, label_B: Tensor, x_BChw: Tensor, t_B: Tensor) -> Tensor:
    """The originals' forward out of ours."""
    grids = [grid_of(x_BChw)] * len(x_BChw)
    check_size(*grids[0], network.config)
    layout = layout_of_tables(grids, partial(position_tables, config=network.config))
    out = network(pack_latents(list(x_BChw)), layout, t_B, label_B)
    return torch.stack(unpack_latents(out, grids))


def guided(network: FlagDiT, case: Case, x: Tensor, t_B: Tensor) -> Tensor:
    velocity = partial(predict, network, case.inputs["y"])
    return guided_halves(velocity, x, t_B, case.params["cfg_scale"])


def loop_of(case: Case, family: Family = FLAG) -> Loop:
    network = network_of(family, case).requires_grad_(False)
    if case.params.get("dtype") == "float64":
        network = network.double()

    def velocity(x: Tensor, t: float) -> Tensor:
        return guided(network, case, x, torch.full((len(x),), t))

    return Loop(case, velocity)


@pytest.mark.parametrize(
    ("family", "name"),
    [(family, name) for family in (FLAG, LARGE) for name in family.case_names("forward")],
)
def test_forward_equals_the_original(family: Family, name: str) -> None:
    case = family.case(name)
    network = network_of(family, case).requires_grad_(False)
    case.check({"out": predict(network, case.inputs["y"], case.inputs["x"], case.inputs["t"])})


@pytest.mark.parametrize("family", [FLAG, LARGE])
def test_guidance_moves_three_channels(family: Family) -> None:
    case = family.case("cfg_4.0")
    network = network_of(family, case).requires_grad_(False)
    case.check({"out": guided(network, case, case.inputs["x"], case.inputs["t"])})


@pytest.mark.parametrize("name", FLAG.case_names("sample_ode"))
def test_integrated_trajectories_equal_the_original(name: str) -> None:
    case = FLAG.case(name)
    case.check(loop_of(case).integrate())


@pytest.mark.parametrize(
    "name", [c.name for c in FLAG.cases("sample_ode") if c.params["method"] in ODE]
)
def test_trajectories_of_coefficient_rows_equal_the_original(name: str) -> None:
    case = FLAG.case(name)
    sigmas = shifted_sigmas(case.params["num_steps"] - 1, 1.0)
    states = loop_of(case).follow(ALONG[ODE[case.params["method"]]](sigmas))
    kept = torch.stack(states)[:, : len(states[0]) // 2]
    case.check({"states": kept, "final": states[-1]}, partial=True)


def test_the_sde_equals_the_original_with_half_its_evaluations() -> None:
    case = FLAG.case("sde_euler_sigma")
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


def test_loss_and_gradients_equal_the_original() -> None:
    for name in ("loss", "grad"):
        case = FLAG.case(name)
        network = network_of(FLAG, case)
        got = {"loss": loss_of(case, partial(predict, network, case.inputs["y"]))}
        if "grad_norms" in case.expected:
            got["grad_norms"] = gradient_norms(network, got["loss"], case.params["keys"])
        case.check(got)


def test_large_dit_samples_by_ddpm_as_the_original() -> None:
    case = LARGE.case("ddpm_10_cfg")
    network = network_of(LARGE, case).requires_grad_(False)
    x, half = case.inputs["z"], len(case.inputs["z"]) // 2
    draws = iter(case.inputs["noise"])
    samples, estimates, timesteps = [], [], []
    for evaluation in ddpm(discrete_path("even", 10)).evaluations:
        assert isinstance(evaluation, DiscreteEvaluation)
        t = torch.full((len(x),), evaluation.timestep)
        noise_hat, variance = guided(network, case, x, t).chunk(2, dim=1)
        from_state, from_noise = evaluation.data_estimate
        estimates.append((from_state * x + from_noise * noise_hat)[:half])
        timesteps.append(evaluation.timestep)
        a, b, _, d = evaluation.coefficients[:4]
        noise = next(draws)
        if evaluation.log_variance_range:
            rows = torch.tensor([evaluation.log_variance_range])
            one = torch.zeros(x.numel() // 16, dtype=torch.int64)
            shape = (-1, 16)
            noise = scaled_noise(noise.reshape(shape), variance.reshape(shape), rows, one)
            noise = noise.view_as(x)
        x = a * x + b * noise_hat + d * noise
        samples.append(x[:half])
    case.check(
        {
            "final": x,
            "samples": torch.stack(samples),
            "pred_xstart": torch.stack(estimates),
            "t_net": torch.tensor(timesteps).to(case.expected["t_net"].dtype),
        }
    )


def test_large_dit_learns_as_the_original() -> None:
    case = LARGE.case("loss")
    network = network_of(LARGE, case).requires_grad_(False)
    data, noise = (pack_latents(list(case.inputs[name])) for name in ("x_start", "noise"))
    t, grids = case.inputs["t"], [grid_of(x) for x in case.inputs["x_start"]]
    layout = layout_of_tables(grids, partial(position_tables, config=network.config))
    noisy = discrete_inputs(data, noise, t[layout.seq_of_token])
    out = network(noisy, layout, t, case.inputs["y"])
    loss = discrete_loss(out, data, noise, noisy, t, layout.seq_of_token)
    case.check({"loss": loss.total, "mse": loss.mean_square, "vb": loss.bound})


@pytest.mark.parametrize("name", FLAG.case_names("rope"))
def test_positions_equal_the_original(name: str) -> None:
    case = FLAG.case(name)
    config = FlagDiTConfig(hidden_size=case.params["head_dim"], depth=1, num_heads=1)
    cos, sin = position_tables(64, 64, config)
    rows = torch.tensor(case.params["rows"])
    case.check({"cos": cos[rows], "sin": sin[rows]})


def test_a_sequence_does_not_notice_its_neighbours() -> None:
    network = network_of(FLAG, FLAG.case("forward_gqa")).requires_grad_(False)
    grids = [(4, 4), (2, 3), (5, 1), (4, 4)]
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
        network = FlagDiT(NAMED_FLAG_DIT_CONFIGS[name])
    assert parameters_and_keys(network) == COUNTED[name]


def test_a_config_survives_its_file_and_refuses_nonsense() -> None:
    for config in NAMED_FLAG_DIT_CONFIGS.values():
        assert FlagDiTConfig.from_dict(config.to_dict()) == config
    assert all(release.config_name in NAMED_FLAG_DIT_CONFIGS for release in RELEASES)
    values = NAMED_FLAG_DIT_CONFIGS["Flag-DiT-600M"].to_dict()
    for changes, message in (
        ({"width": 3}, "unknown model config keys"),
        ({"prediction": "image"}, "prediction 'image' is unknown; known: velocity, noise"),
        ({"num_kv_heads": 5}, "num_kv_heads 5 does not divide num_heads 32"),
        ({"hidden_size": 1500}, "hidden_size 1500 is not a multiple of num_heads 32"),
        ({"hidden_size": 64}, "head dim 2 is not a multiple of 4"),
        ({"depth": 0}, "depth is 0; it must be at least 1"),
        ({"guided_channels": 5}, "guided_channels 5 is not in 1..4"),
        ({"trained_side": 0}, "trained_side is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            FlagDiTConfig.from_dict({**values, **changes})


def test_only_the_trained_grid_can_be_drawn() -> None:
    config = NAMED_FLAG_DIT_CONFIGS["Flag-DiT-600M"]
    check_size(16, 16, config)
    with pytest.raises(ValueError, match=r"16x20 tokens cannot be drawn; .* 16x16 alone"):
        check_size(16, 20, config)
