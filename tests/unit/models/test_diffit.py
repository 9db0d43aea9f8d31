"""DiffiT equals the authors' code; its neighbours do not matter to a sequence."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from fit_models.diffusion.discrete import discrete_path
from fit_models.diffusion.discrete_sampler import ddim, ddpm
from fit_models.diffusion.power_cosine import power_cosine_scale
from fit_models.networks.diffit import DiffiT
from fit_models.networks.diffit_config import (
    NAMED_DIFFIT_CONFIGS,
    RELEASES,
    DiffiTConfig,
    check_size,
    position_tables,
)
from fit_models.packing import PackedLayout
from fit_models.positions import layout_of_tables
from fit_models.relative_bias import relative_position_index
from fit_models.sincos import sincos_table
from support.golden import Case, load_family
from support.square_latents import OnLatents, Predict, doubled, run_discrete

FAMILY = load_family("diffit")
INDEX = "relative_position_index"


def config_of(model: str) -> DiffiTConfig:
    official = FAMILY.config(model)
    return DiffiTConfig(
        hidden_size=official["hidden_size"],
        depth=official["depth"],
        num_heads=official["num_heads"],
        latent_size=official["input_size"],
        in_channels=official["in_channels"],
        patch_size=official["patch_size"],
        num_classes=official["num_classes"],
        mlp_ratio=official["mlp_ratio"],
        learned_variance=official["learn_sigma"],
    )


def released_weights(model: str) -> dict[str, torch.Tensor]:
    """Every key of the released file: the recorded weights leave out what a model computes."""
    config = config_of(model)
    weights = FAMILY.weights(model)
    weights["pos_embed"] = sincos_table(config.side, config.side, config.hidden_size)[None]
    index = relative_position_index(config.side)
    weights |= {key: index.clone() for key in FAMILY.shapes(model) if key.endswith(INDEX)}
    assert {key: tuple(w.shape) for key, w in weights.items()} == FAMILY.shapes(model)
    return weights


def network_of(model: str) -> DiffiT:
    network = DiffiT(config_of(model))
    network.load_state_dict(released_weights(model), strict=True)
    return network.eval().requires_grad_(False)


def on_latents(network: DiffiT, position_factor: float = 1.0) -> OnLatents:
    return OnLatents(network, partial(position_tables, config=network.config), position_factor)


def guided(case: Case) -> Predict:
    network = network_of(str(case.model))
    scale, power = case.params["cfg_scale"], case.params["scale_pow"]

    def scale_of(t_B: torch.Tensor) -> torch.Tensor:
        if network.config.guidance_power == 0.0:
            return torch.full_like(t_B, scale, dtype=torch.float32)
        return torch.tensor([power_cosine_scale(scale, power, float(t)) for t in t_B])

    predict = on_latents(network)
    return predict if scale is None else doubled(predict, scale_of)


def layout_for(network: DiffiT, grids: list[tuple[int, int]]) -> PackedLayout:
    return layout_of_tables(grids, partial(position_tables, config=network.config))


@pytest.mark.parametrize("name", FAMILY.case_names("forward"))
def test_forward_equals_the_original(name: str) -> None:
    case = FAMILY.case(name)
    predict = on_latents(network_of(str(case.model)), case.params.get("pos_mul", 1.0))
    case.check({"out": predict(*(case.inputs[k] for k in "xty"))})


@pytest.mark.parametrize("name", FAMILY.case_names("forward_with_cfg"))
def test_guided_forward_equals_the_original(name: str) -> None:
    case = FAMILY.case(name)
    case.check({"out": guided(case)(*(case.inputs[k] for k in "xty"))})


@pytest.mark.parametrize("name", [*FAMILY.case_names("ddpm"), *FAMILY.case_names("ddim")])
def test_sampling_equals_the_original(name: str) -> None:
    case = FAMILY.case(name)
    steps = int(case.params["respacing"].removeprefix("ddim"))
    if case.op == "ddpm":
        trajectory = ddpm(discrete_path("even", steps))
    else:
        trajectory = ddim(discrete_path("strided", steps), case.params["eta"])
    z, y, noise = case.inputs["z"], case.inputs["y"], case.inputs.get("noise")
    case.check(run_discrete(guided(case), trajectory, z, y, noise))


def test_the_index_equals_the_original() -> None:
    case = FAMILY.case("relative_position_index")
    case.check({"index": relative_position_index(config_of("tiny").side)})


def test_gradients_equal_the_original() -> None:
    case = FAMILY.case("grad")
    network = network_of("tiny").requires_grad_(True)
    value = on_latents(network)(*(case.inputs[k] for k in "xty")).square().mean()
    value.backward()
    gradients = {key: parameter.grad for key, parameter in network.named_parameters()}
    assert sorted(gradients) == case.params["keys"]
    norms = []
    for key in case.params["keys"]:
        gradient = gradients[key]
        assert gradient is not None, key
        norms.append(gradient.norm())
    case.check({"value": value[None], "grad_norms": torch.stack(norms)})


def test_a_sequence_does_not_notice_its_neighbours() -> None:
    network = network_of("tiny16")
    grids = [(8, 8), (2, 8), (4, 4), (8, 2), (8, 8), (8, 8), (1, 1), (3, 7)]
    generator = torch.Generator().manual_seed(0)
    tokens = [torch.randn(r * c, 16, generator=generator) for r, c in grids]
    t = torch.linspace(0.0, 999.0, len(grids)).round()
    y = torch.arange(len(grids)) * 7
    parts = network(torch.cat(tokens), layout_for(network, grids), t, y).split(
        [len(x) for x in tokens]
    )
    for i, grid in enumerate(grids):
        alone = network(tokens[i], layout_for(network, [grid]), t[i : i + 1], y[i : i + 1])
        torch.testing.assert_close(parts[i], alone, atol=2e-5, rtol=0.0)


def test_bfloat16_is_the_same_network_more_coarsely() -> None:
    network = network_of("tiny")
    tokens = torch.randn(
        24, network.config.token_channels, generator=torch.Generator().manual_seed(2)
    )
    t, y = torch.tensor([900.0, 30.0]), torch.tensor([1, 2])
    layout = layout_for(network, [(4, 4), (2, 4)])
    exact = network(tokens, layout, t, y)
    coarse = network.bfloat16()(tokens.bfloat16(), layout, t, y)
    assert coarse.dtype == torch.bfloat16
    error = (coarse.float() - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert error < 0.05


def test_grids_are_asked_for() -> None:
    network = network_of("tiny")
    layout = layout_for(network, [(4, 4)])
    bare = PackedLayout(**{**layout.__dict__, "grids": ()})
    with pytest.raises(ValueError, match=r"layout\.grids is empty"):
        network(torch.zeros(16, 16), bare, torch.zeros(1), torch.zeros(1, dtype=torch.int64))


@pytest.mark.parametrize(
    ("name", "count", "trainable"),
    [
        ("DiffiT-XL/2-256", 561_330_144, 561_035_232),
        ("DiffiT-XL/2-512", 563_562_464, 562_382_816),
    ],
)
def test_named_sizes_are_the_papers(name: str, count: int, trainable: int) -> None:
    with torch.device("meta"):
        network = DiffiT(NAMED_DIFFIT_CONFIGS[name])
    assert sum(p.numel() for p in network.parameters()) == trainable
    state = network.state_dict()
    assert sum(value.numel() for value in state.values()) == count
    assert len(state) + sum(key.endswith("bias_table") for key in state) == 346  # and an index


def test_weights_of_another_grid_are_refused() -> None:
    weights = released_weights("tiny")
    weights[f"blocks.1.attn.{INDEX}"] = relative_position_index(8)
    with pytest.raises(RuntimeError, match="not that of a grid of 4x4"):
        DiffiT(config_of("tiny")).load_state_dict(weights)
    learned = released_weights("tiny")
    learned["pos_embed"] = learned["pos_embed"] + 0.1
    with pytest.raises(ValueError, match=r"pos_embed differs by 0\.1"):
        DiffiT(config_of("tiny")).load_state_dict(learned)


def test_only_the_trained_grid_is_served() -> None:
    config = NAMED_DIFFIT_CONFIGS["DiffiT-XL/2-512"]
    check_size(32, 32, config)
    with pytest.raises(ValueError, match=r"32x32 alone .*512x512 pixels"):
        check_size(16, 16, config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 100}, "multiple of num_heads 16"),
        ({"latent_size": 33}, "multiple of patch_size"),
        ({"guided_channels": 0}, r"not in 1\.\.4"),
        ({"widht": 3}, "unknown model config keys"),
    ],
)
def test_bad_values_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiffiTConfig.from_dict(NAMED_DIFFIT_CONFIGS["DiffiT-XL/2-256"].to_dict() | changes)


def test_configs_survive_their_file_and_releases_name_them() -> None:
    for config in NAMED_DIFFIT_CONFIGS.values():
        assert DiffiTConfig.from_dict(config.to_dict()) == config
    assert {release.config_name for release in RELEASES} <= set(NAMED_DIFFIT_CONFIGS)
