"""MDT, both versions, equals the authors' code; its neighbours do not matter to a sequence."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from fit_models.diffusion.discrete import discrete_path
from fit_models.diffusion.discrete_loss import discrete_inputs, discrete_loss
from fit_models.diffusion.discrete_sampler import ddpm
from fit_models.diffusion.power_cosine import power_cosine_scale
from fit_models.diffusion.snr_weight import min_snr_weight
from fit_models.networks.mdt import MDT
from fit_models.networks.mdt_config import (
    NAMED_MDT_CONFIGS,
    RELEASES,
    MDTConfig,
    check_size,
    position_tables,
)
from fit_models.packing import PackedLayout
from fit_models.patches import patchify
from fit_models.positions import layout_of_tables
from fit_models.relative_bias import relative_position_index
from support.golden import Case, load_family
from support.square_latents import OnLatents, Predict, doubled, run_discrete

FAMILY = load_family("mdt")


def config_of(model: str) -> MDTConfig:
    official = FAMILY.config(model)
    return MDTConfig(
        hidden_size=official["hidden_size"],
        depth=official["depth"],
        num_heads=official["num_heads"],
        decode_layer=official["decode_layer"],
        version=official["version"],
        latent_size=official["input_size"],
        in_channels=official["in_channels"],
        patch_size=official["patch_size"],
        num_classes=official["num_classes"],
        mlp_ratio=official["mlp_ratio"],
        learned_variance=official["learn_sigma"],
    )


def released_weights(model: str) -> dict[str, torch.Tensor]:
    """Every key of the released file: the recorded weights leave the index buffers out."""
    weights = FAMILY.weights(model)
    index = relative_position_index(config_of(model).side)
    weights |= {key: index.clone() for key in FAMILY.shapes(model) if key not in weights}
    assert {key: tuple(w.shape) for key, w in weights.items()} == FAMILY.shapes(model)
    return weights


def network_of(model: str) -> MDT:
    network = MDT(config_of(model))
    network.load_state_dict(released_weights(model), strict=True)
    return network.eval().requires_grad_(False)


def on_latents(model: str) -> OnLatents:
    network = network_of(model)
    return OnLatents(network, partial(position_tables, config=network.config))


def guided(case: Case) -> Predict:
    def scale(t_B: torch.Tensor) -> torch.Tensor:
        args = case.params["cfg_scale"], case.params["scale_pow"]
        return torch.tensor([power_cosine_scale(*args, float(t)) for t in t_B])

    return doubled(on_latents(str(case.model)), scale)


def layout_for(network: MDT, grids: list[tuple[int, int]]) -> PackedLayout:
    return layout_of_tables(grids, partial(position_tables, config=network.config))


@pytest.mark.parametrize("name", FAMILY.case_names("forward"))
def test_forward_equals_the_original(name: str) -> None:
    case = FAMILY.case(name)
    out = on_latents(str(case.model))(*(case.inputs[k] for k in "xty"))
    case.check({"out": out})


@pytest.mark.parametrize("name", FAMILY.case_names("forward_with_cfg"))
def test_guided_forward_equals_the_original(name: str) -> None:
    case = FAMILY.case(name)
    case.check({"out": guided(case)(*(case.inputs[k] for k in "xty"))})


@pytest.mark.parametrize("name", FAMILY.case_names("ddpm"))
def test_sampling_equals_the_original(name: str) -> None:
    case = FAMILY.case(name)
    trajectory = ddpm(discrete_path("even", int(case.params["respacing"])))
    z, y, noise = (case.inputs[k] for k in ("z", "y", "noise"))
    case.check(run_discrete(guided(case), trajectory, z, y, noise))


@pytest.mark.parametrize("name", FAMILY.case_names("loss"))
def test_the_loss_equals_the_original(name: str) -> None:
    case = FAMILY.case(name)
    network = network_of(str(case.model))
    data, noise = (
        patchify(case.inputs[k], network.config.patch_size).flatten(0, 1)
        for k in ("x_start", "noise")
    )
    t, layout = case.inputs["t"], layout_for(network, [(4, 4)] * 3)
    noisy = discrete_inputs(data, noise, t[layout.seq_of_token])
    prediction = network(noisy, layout, t, case.inputs["y"].long())
    loss = discrete_loss(prediction, data, noise, noisy, t, layout.seq_of_token)
    mse = min_snr_weight(t) * loss.mean_square
    case.check({"loss": mse + loss.bound, "mse": mse, "vb": loss.bound})


@pytest.mark.parametrize("model", FAMILY.model_names())
def test_a_sequence_does_not_notice_its_neighbours(model: str) -> None:
    network = network_of(model)
    grids = [(4, 4), (2, 4), (4, 2), (4, 4), (4, 4), (1, 1), (3, 4)]
    generator = torch.Generator().manual_seed(0)
    tokens = [torch.randn(r * c, 16, generator=generator) for r, c in grids]
    t = torch.linspace(0.0, 999.0, len(grids)).round()
    y = torch.arange(len(grids)) * 7
    together = network(torch.cat(tokens), layout_for(network, grids), t, y)
    parts = together.split([len(x) for x in tokens])
    for i, grid in enumerate(grids):
        alone = network(tokens[i], layout_for(network, [grid]), t[i : i + 1], y[i : i + 1])
        torch.testing.assert_close(parts[i], alone, atol=2e-5, rtol=0.0)


def test_sequences_without_a_grid_are_padding() -> None:
    network = network_of("v2")
    tokens = torch.randn(40, 16, generator=torch.Generator().manual_seed(1))
    t, y = torch.tensor([10.0, 500.0, 0.0]), torch.tensor([1, 2, 3])
    layout = layout_for(network, [(4, 4), (4, 4), (2, 4)])
    padded = network(tokens, replace(layout, grids=layout.grids[:2]), t, y)
    torch.testing.assert_close(padded[:32], network(tokens, layout, t, y)[:32])


def test_bfloat16_is_the_same_network_more_coarsely() -> None:
    network = network_of("v2")
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


@pytest.mark.parametrize(
    ("name", "count", "keys"),
    [("MDT-XL/2", 699_778_144, 362), ("MDTv2-XL/2", 742_263_904, 394)],
)
def test_named_sizes_are_the_papers(name: str, count: int, keys: int) -> None:
    with torch.device("meta"):
        network = MDT(NAMED_MDT_CONFIGS[name])
    assert sum(p.numel() for p in network.parameters()) == count
    state = network.state_dict()
    assert len(state) + sum(key.endswith("bias_table") for key in state) == keys  # and an index


def test_another_grids_index_is_refused() -> None:
    weights = released_weights("v1")
    key = "blocks.0.attn.rel_pos_bias.relative_position_index"
    weights[key] = weights[key] + 1
    with pytest.raises(RuntimeError, match="not that of a grid of 4x4"):
        MDT(config_of("v1")).load_state_dict(weights)


def test_only_the_trained_grid_is_served() -> None:
    config = NAMED_MDT_CONFIGS["MDTv2-XL/2"]
    check_size(16, 16, config)
    with pytest.raises(ValueError, match=r"16x16 alone .*256x256 pixels"):
        check_size(16, 24, config)
    with pytest.raises(ValueError, match="does not fit the position table"):
        position_tables(17, 4, config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 100}, "multiple of num_heads 16"),
        ({"version": 3}, "has 1 and 2"),
        ({"decode_layer": 28}, r"not in 1\.\.27"),
        ({"decode_layer": 3}, "is odd"),
        ({"latent_size": 33}, "multiple of patch_size"),
        ({"guided_channels": 5}, r"not in 1\.\.4"),
        ({"widht": 3}, "unknown model config keys"),
    ],
)
def test_bad_values_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MDTConfig.from_dict(NAMED_MDT_CONFIGS["MDTv2-XL/2"].to_dict() | changes)


def test_configs_survive_their_file_and_releases_name_them() -> None:
    for config in NAMED_MDT_CONFIGS.values():
        assert MDTConfig.from_dict(config.to_dict()) == config
    assert {release.config_name for release in RELEASES} <= set(NAMED_MDT_CONFIGS)
