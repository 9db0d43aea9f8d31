"""Named DiT, SiT and FiT v1 sizes have the published parameters; configs survive their files."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fit_models.networks import dit_config, fitv1_config
from fit_models.networks.dit import DiT
from fit_models.networks.dit_config import NAMED_DIT_CONFIGS, DiTConfig
from fit_models.networks.fitv1 import FiTv1
from fit_models.networks.fitv1_config import NAMED_FITV1_CONFIGS, FiTv1Config
from support.discrete_networks import Subject

# Values of the state dict, position table included, and tensors in it.
PUBLISHED = {
    "DiT-S/2": (32_963_360, 132),
    "DiT-S/4": (32_945_024, 132),
    "DiT-S/8": (33_148_160, 132),
    "DiT-B/2": (130_512_416, 132),
    "DiT-B/4": (130_475_648, 132),
    "DiT-B/8": (130_881_536, 132),
    "DiT-L/2": (458_102_816, 252),
    "DiT-L/4": (458_053_760, 252),
    "DiT-L/8": (458_594_816, 252),
    "DiT-XL/2": (675_129_632, 292),
    "DiT-XL/4": (675_074_432, 292),
    "DiT-XL/8": (675_683_072, 292),
    "DiT-XL/2-512": (676_014_368, 292),
    "DiT-XL/2-diffusers": (675_129_632, 292),
    "SiT-XL/2": (675_129_632, 292),
    "FiT-B/2": (158_664_224, 155),
    "FiT-XL/2": (823_599_392, 347),
}
NAMED: dict[str, DiTConfig | FiTv1Config] = {**NAMED_DIT_CONFIGS, **NAMED_FITV1_CONFIGS}
SMALL: dict[str, DiTConfig | FiTv1Config] = {
    "DiT": DiTConfig(hidden_size=48, depth=2, num_heads=2, num_classes=3, trained_grid=4),
    "FiTv1": FiTv1Config(hidden_size=48, depth=2, num_heads=2, num_classes=3),
}


def network_of(config: DiTConfig | FiTv1Config) -> DiT | FiTv1:
    return DiT(config) if isinstance(config, DiTConfig) else FiTv1(config)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_have_exactly_their_parameters(name: str) -> None:
    with torch.device("meta"):
        state = network_of(NAMED[name]).state_dict()
    assert (sum(t.numel() for t in state.values()), len(state)) == PUBLISHED[name]


def test_positions_are_not_trained() -> None:
    with torch.device("meta"):
        network = DiT(NAMED_DIT_CONFIGS["DiT-XL/2"])
    assert sum(p.numel() for p in network.parameters()) == 674_834_720


@pytest.mark.parametrize("family", SMALL)
def test_the_flops_of_a_token_are_those_of_its_matrix_products(family: str) -> None:
    config = SMALL[family]
    network = network_of(config)  # with gradients, so that attention is products torch counts
    layout = Subject(network).layout([(4, 6), (4, 6)])
    labels = torch.zeros(2, dtype=torch.int64)
    modulation = network.modulate(torch.zeros(2), labels, layout)
    with FlopCounterMode(display=False) as counter:
        network.denoise(torch.zeros(48, config.token_channels), layout, modulation)
    assert counter.get_total_flops() == 48 * config.flops_per_token(24)


@pytest.mark.parametrize("name", NAMED)
def test_a_config_survives_its_file(name: str) -> None:
    config = NAMED[name]
    values = json.loads(json.dumps({"_class_name": "DiT", **config.to_dict()}))
    assert type(config).from_dict(values) == config


def test_the_channels_of_every_objective() -> None:
    dit, sit = NAMED_DIT_CONFIGS["DiT-XL/2"], NAMED_DIT_CONFIGS["SiT-XL/2"]
    port, fit = NAMED_DIT_CONFIGS["DiT-XL/2-diffusers"], NAMED_FITV1_CONFIGS["FiT-XL/2"]
    channels = [
        (c.token_channels, c.output_channels, c.guided_token_channels, c.null_label, c.head_dim)
        for c in (dit, sit, port, fit)
    ]
    assert channels == [
        (16, 32, 12, 1000, 72),
        (16, 16, 12, 1000, 72),
        (16, 32, 16, 1000, 72),
        (16, 32, 12, 1000, 72),
    ]


@pytest.mark.parametrize("release", [*dit_config.RELEASES, *fitv1_config.RELEASES])
def test_a_release_fits_a_named_size(release: Any) -> None:
    assert release.config_name in NAMED


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 5}, "hidden_size 48 is not a multiple of num_heads 5"),
        ({"num_heads": 0}, "hidden_size 48 is not a multiple of num_heads 0"),
        ({"hidden_size": 50}, "hidden_size 50 is not a multiple of 4"),
        ({"guided_channels": 5}, r"guided_channels 5 is not in 1\.\.4"),
        ({"prediction": "image"}, "prediction 'image' is unknown; known: noise, velocity"),
        ({"positions": "wide"}, "positions 'wide' is unknown; known: integer, rescaled"),
        ({"trained_grid": 0}, "trained_grid is 0; it must be at least 1"),
        ({"heads": 2}, r"unknown model config keys \['heads'\]"),
        ({"num_heads": None}, "does not fit"),
    ],
)
def test_what_makes_no_dit_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiTConfig.from_dict({**SMALL["DiT"].to_dict(), **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 5}, "hidden_size 48 is not a multiple of num_heads 5"),
        ({"num_heads": 8}, "head dim 6 is not a multiple of 4"),
        ({"guided_channels": 0}, r"guided_channels 0 is not in 1\.\.4"),
        ({"depth": 0}, "depth is 0; it must be at least 1"),
        ({"rope": {"mode": "wide"}}, "rope mode 'wide' is unknown"),
        ({"rope": {"base": 1}}, "base"),
        ({"adaln_lora_dim": 2}, r"unknown model config keys \['adaln_lora_dim'\]"),
    ],
)
def test_what_makes_no_fit_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FiTv1Config.from_dict({**SMALL["FiTv1"].to_dict(), **changes})


@pytest.mark.parametrize("family", SMALL)
def test_any_grid_that_has_tokens_will_do(family: str) -> None:
    config = SMALL[family]
    if isinstance(config, DiTConfig):
        tables, check = dit_config.position_tables, dit_config.check_size
    else:
        tables, check = fitv1_config.position_tables, fitv1_config.check_size
    for rows, columns in [(1, 1), (3, 5), (40, 7)]:
        check(rows, columns, config)  # pyright: ignore[reportArgumentType]
        first, second = tables(rows, columns, config)  # pyright: ignore[reportArgumentType]
        assert len(first) == len(second) == rows * columns
    with pytest.raises(ValueError, match=r"a grid of 0x4 tokens is empty; .* of the patch size 2"):
        check(0, 4, config)  # pyright: ignore[reportArgumentType]
