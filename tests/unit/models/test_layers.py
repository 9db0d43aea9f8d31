"""The time embedding equals the original; solvers that overshoot are held at the data end."""

import pytest
import torch

from fit_models.config import named_config
from fit_models.layers import TimestepEmbedder, shifted_timestep, timestep_features
from fit_models.networks.fitv2 import FiTv2
from fit_models.packing import layout_of_grids
from support.golden import load_family
from support.official import network_of


def test_the_time_embedding_equals_the_original():
    family = load_family("fitv2")
    case = family.case("time_embedding")
    network = network_of(family, case)
    t = case.inputs["t"]
    case.check({"tfreq": timestep_features(t), "temb": network.t_embedder(t)})


def test_the_embedder_follows_the_type_of_its_weights():
    embedder = TimestepEmbedder(8).bfloat16()
    assert embedder(torch.tensor([0.25])).dtype == torch.bfloat16
    # the features themselves stay exact: bfloat16 times would differ by up to 1/256
    assert timestep_features(torch.tensor([0.3])).dtype == torch.float32


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_shifted_timestep_keeps_its_ends_and_is_held_at_one(shift: float):
    t = torch.tensor([0.0, 0.5, 1.0, 1.3])
    middle = shift * 0.5 / (1 + (shift - 1) * 0.5)
    torch.testing.assert_close(shifted_timestep(t, shift), torch.tensor([0.0, middle, 1.0, 1.0]))


def test_fresh_weights_predict_nothing_and_leave_every_gate_shut():
    """FiTv2 starts as the zero function: each block is the identity, the last layer is zero."""
    config = named_config("FiTv2-toy/2", 3)
    torch.manual_seed(0)
    network = FiTv2(config)
    network.initialize()
    layout = layout_of_grids([(2, 3), (1, 1)], config.head_dim, config.rope)
    tokens = torch.randn(7, config.token_channels)
    labels = torch.tensor([0, config.null_label])
    assert not network(tokens, layout, torch.tensor([0.2, 0.7]), labels).any()
    modulation = network.modulate(torch.tensor([0.2, 0.7]), labels, layout)
    assert not any(rows.any() for rows in (*modulation.blocks, modulation.final))
    assert network.x_embedder.proj.weight.any()
