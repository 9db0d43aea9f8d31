"""TerDiT equals the authors' own code on every recorded run, from packed and from float files."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fit_kernels.ternary_weights import unpack_ternary
from fit_models.networks.terdit import TerDiT
from fit_models.networks.terdit_config import TerDiTConfig, trained_labels
from fit_models.ternary import FakeTernaryLinear, TernaryLinear
from support.golden import load_family
from support.terdit import (
    config_from_official,
    guided_pictures,
    layout_of,
    network_of,
    packed_weights,
    run_pictures,
)

FAMILY = load_family("terdit")


@pytest.mark.parametrize("weights", ["packed", "float", "fake"])
@pytest.mark.parametrize("name", FAMILY.case_names("forward"))
def test_forward_equals_the_original(name: str, weights: str) -> None:
    case = FAMILY.case(name)
    network = network_of(FAMILY, case, weights)
    case.check({"out": run_pictures(network, case.inputs["x"], case.inputs["t"], case.inputs["y"])})


def test_guidance_equals_the_original() -> None:
    case = FAMILY.case("cfg_4.0")
    network = network_of(FAMILY, case, case.params["weights"])
    x, t, y = (case.inputs[name] for name in "xty")
    case.check({"out": guided_pictures(network, x, t, y, case.params["cfg_scale"])})


def test_packed_bytes_are_those_of_a_released_file() -> None:
    case = FAMILY.case("packed_weights")
    weights = FAMILY.weights("tiny")
    packed = packed_weights(weights)
    network = TerDiT(config_from_official(case.config))
    network.load_state_dict(weights, strict=True)
    state = network.state_dict()
    actual: dict[str, Tensor] = {}
    for key in case.params["keys"]:
        assert torch.equal(state[f"{key}.weight"], packed[f"{key}.weight"])
        actual[f"packed:{key}"] = state[f"{key}.weight"]
    for key in case.params["dequant"]:
        values = unpack_ternary(state[f"{key}.weight"])
        actual[f"dequant:{key}"] = values * state[f"{key}.alphas"]
    case.check(actual)


def test_gradients_are_straight_through() -> None:
    case = FAMILY.case("grad")
    network = network_of(FAMILY, case, "fake").requires_grad_(True)
    x, t, y = (case.inputs[name] for name in "xty")
    value = run_pictures(network, x, t, y).square().mean()
    value.backward()
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    assert sorted(gradients) == case.params["keys"]
    norms = torch.stack([gradients[key].norm() for key in case.params["keys"]])
    full = {n: gradients[n.removeprefix("grad_")] for n in case.expected if n.startswith("grad_l")}
    case.check({"value": value.detach().reshape(1), "grad_norms": norms, **full})


def test_labels_are_numbered_as_the_sorted_strings_of_the_usual_ids() -> None:
    case = FAMILY.case("class_index")
    config = TerDiTConfig(hidden_size=64, depth=1, num_heads=4)
    labels = trained_labels(config, torch.device("cpu"))
    case.check({"index": labels[:-1]})
    assert labels[config.null_label] == config.null_label


def test_the_network_translates_labels_itself() -> None:
    case = FAMILY.case("forward_tiny_packed")
    own = network_of(FAMILY, case, "packed")
    usual = TerDiT(TerDiTConfig(**{**own.config.to_dict(), "label_order": "strings"}))
    usual.load_state_dict(own.state_dict())
    t, y = torch.full((3,), 500), torch.tensor([207, 88, 1000])
    translated = torch.tensor([121, 867, 1000])
    assert torch.equal(usual.condition(t, y), own.condition(t, translated))


# Timestep and respaced coefficients of the recorded run, written straight down from the
# specification in float64: improved DDPM's respacing and learned-range variance.
def _respaced(steps: int) -> tuple[list[int], Tensor]:
    indices = [round(k * 999 / (steps - 1)) for k in range(steps)]
    alpha_bar = (1.0 - torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64)).cumprod(0)
    return indices, alpha_bar[indices]


def test_a_guided_trajectory_equals_the_original() -> None:
    case = FAMILY.case("ddpm_10_cfg")
    network = network_of(FAMILY, case, case.params["weights"])
    indices, bar = _respaced(int(case.params["respacing"]))
    before = torch.cat((torch.ones(1, dtype=torch.float64), bar[:-1]))
    beta = 1.0 - bar / before
    posterior = beta * (1.0 - before) / (1.0 - bar)
    posterior[0] = posterior[1]
    x, half = case.inputs["z"], len(case.inputs["z"]) // 2
    samples, starts, asked = [], [], []
    for draw, k in enumerate(reversed(range(len(indices)))):
        t = torch.full((len(x),), indices[k])
        out = guided_pictures(network, x, t, case.inputs["y"], case.params["cfg_scale"])
        noise, variance = out.chunk(2, dim=1)
        start = bar[k].rsqrt().float() * x - (1.0 / bar[k] - 1.0).sqrt().float() * noise
        to_start = (beta[k] * before[k].sqrt() / (1.0 - bar[k])).float()
        to_x = ((1.0 - before[k]) * (1.0 - beta[k]).sqrt() / (1.0 - bar[k])).float()
        share = (variance + 1.0) / 2.0
        log_variance = share * beta[k].log().float() + (1.0 - share) * posterior[k].log().float()
        x = to_start * start + to_x * x
        if k:
            x = x + (0.5 * log_variance).exp() * case.inputs["noise"][draw]
        samples.append(x[:half])
        starts.append(start[:half])
        asked.append(indices[k])
    case.check(
        {
            "final": x,
            "samples": torch.stack(samples),
            "pred_xstart": torch.stack(starts),
            "t_net": torch.tensor(asked).to(case.expected["t_net"].dtype),
        }
    )


@pytest.mark.parametrize("linear", [TernaryLinear, FakeTernaryLinear])
def test_names_are_exactly_those_of_the_released_files(linear: type) -> None:
    for model in ("tiny", "qknorm"):
        network = TerDiT(config_from_official(FAMILY.config(model)), linear)
        assert sorted(network.state_dict()) == sorted(FAMILY.shapes(model))


@pytest.mark.parametrize("qk_norm", [False, True])
def test_a_sequence_does_not_notice_its_neighbours(qk_norm: bool) -> None:
    case = FAMILY.case(f"forward_{'qknorm' if qk_norm else 'tiny'}_packed")
    network = network_of(FAMILY, case, "packed")
    grids = [(3, 3), (4, 4), (1, 1), (3, 3), (6, 6)]
    generator = torch.Generator().manual_seed(0)
    tokens = [torch.randn(h * w, 16, generator=generator) for h, w in grids]
    t, y = torch.tensor([0, 250, 500, 750, 999]), torch.arange(len(grids)) * 250
    together = network(torch.cat(tokens), layout_of(grids, network.config), t, y)
    start = 0
    for i, grid in enumerate(grids):
        one = slice(i, i + 1)
        alone = network(tokens[i], layout_of([grid], network.config), t[one], y[one])
        torch.testing.assert_close(together[start : start + len(alone)], alone, atol=5e-5, rtol=0.0)
        start += len(alone)


def test_packed_weights_are_not_trained() -> None:
    with pytest.raises(ValueError, match="cannot be trained"):
        TerDiT(TerDiTConfig(hidden_size=16, depth=1, num_heads=2)).initialize()


def test_a_fresh_network_for_training_predicts_nothing() -> None:
    config = TerDiTConfig(hidden_size=16, depth=1, num_heads=2)
    network = TerDiT(config, FakeTernaryLinear)
    network.initialize()
    out = network(
        torch.randn(4, 16), layout_of([(2, 2)], config), torch.tensor([5]), torch.tensor([7])
    )
    assert not out.any()
