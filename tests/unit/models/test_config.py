"""Named sizes have the published parameters; a config survives its file and refuses nonsense."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fit_models.config import NAMED_CONFIGS, ModelConfig, RopeConfig, named_config
from fit_models.networks.fitv2 import FiTv2
from fit_models.packing import layout_of_grids

# Parameters and tensors of the state dict, derived from the released files and configurations.
RELEASED = {
    "FiTv2-B/2": (128_149_072, 223),
    "FiTv2-XL/2": (671_045_776, 517),
    "FiTv2-3B/2": (2_971_928_080, 573),
    "FiTv2-HR-XL/2": (671_045_776, 517),
    "FiTv2-HR-3B/2": (2_971_928_080, 573),
}


@pytest.mark.parametrize("name", RELEASED)
def test_released_sizes_have_exactly_their_parameters(name: str):
    with torch.device("meta"):
        state = FiTv2(named_config(name)).state_dict()
    assert (sum(t.numel() for t in state.values()), len(state)) == RELEASED[name]


def test_the_flops_of_a_token_are_those_of_its_matrix_products():
    """Counted by torch on a small network; embedding of times and labels is per sequence."""
    config = named_config("FiTv2-toy/2", 3)
    network = FiTv2(config)  # with gradients, so that attention is products torch counts
    grids = [(4, 6), (4, 6)]
    layout = layout_of_grids(grids, config.head_dim, config.rope)
    labels = torch.zeros(2, dtype=torch.int64)
    modulation = network.modulate(torch.zeros(2), labels, layout)
    with FlopCounterMode(display=False) as counter:
        network.denoise(torch.zeros(48, config.token_channels), layout, modulation)
    assert counter.get_total_flops() == 48 * config.flops_per_token(24)


@pytest.mark.parametrize("name", NAMED_CONFIGS)
def test_a_config_survives_its_file(name: str):
    config = NAMED_CONFIGS[name]
    values = json.loads(json.dumps({"_class_name": "FiTv2", **config.to_dict()}))
    assert ModelConfig.from_dict(values) == config


def test_a_named_size_takes_another_number_of_classes():
    config = named_config("FiTv2-toy/2", 7)
    assert (config.num_classes, config.null_label) == (7, 7)
    assert named_config("FiTv2-XL/2").num_classes == 1000


def test_the_first_three_latent_channels_are_guided():
    config = named_config("FiTv2-XL/2")
    assert (config.token_channels, config.guided_token_channels) == (16, 12)


def values_with(**changes: object) -> dict[str, object]:
    return {**NAMED_CONFIGS["FiTv2-toy/2"].to_dict(), **changes}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (values_with(num_heads=5), "hidden_size 48 is not a multiple of num_heads 5"),
        (values_with(num_heads=8), "head dim 6 is not a multiple of 4"),
        (values_with(guided_channels=5), r"guided_channels 5 is not in 1\.\.4"),
        (values_with(guided_channels=0), r"guided_channels 0 is not in 1\.\.4"),
        (values_with(heads=2), r"unknown model config keys \['heads'\]"),
        (values_with(rope={"mode": "wide"}), "rope mode 'wide' is unknown; known: normal"),
        (values_with(rope={"ori_max_pe_len": 0}), "ori_max_pe_len is 0; it must be at least 1"),
        (values_with(rope={"base": 1}), "base"),
        ({"hidden_size": 48, "depth": 1, "num_heads": 2}, "adaln_lora_dim"),
    ],
)
def test_what_makes_no_network_is_refused(values: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_dict(values)


def test_an_unknown_size_is_refused_with_those_known():
    with pytest.raises(ValueError, match="model 'FiT-XXL' is unknown; known: FiTv2-B/2"):
        named_config("FiT-XXL")


def test_configs_do_not_change():
    with pytest.raises(AttributeError):
        RopeConfig().mode = "yarn"  # pyright: ignore[reportAttributeAccessIssue]
