"""What makes bits independent of the batch leaves everything else as it was."""

import pytest
import torch
from torch import nn

from fit_models.batch_invariant import (
    FixedTilesLinear,
    fixed_tiles_obstacle,
    use_fixed_tiles,
)
from fit_models.bundle import EMBEDDED, load_bundle
from fit_models.joined import join_projections
from fit_models.modulation import StackedModulation, rows_one_by_one
from fit_models.networks.fitv2 import FiTv2
from fit_models.packing import layout_of_grids
from support.toy_bundle import make_toy_network

# Outputs are of order one to four; bfloat16 keeps 8 bits of what every block adds.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 6e-2}


@pytest.fixture(scope="module", params=TOLERANCE, ids=str)
def network(request: pytest.FixtureRequest) -> FiTv2:
    return load_bundle(EMBEDDED, device="cpu", dtype=request.param).fitv2("these tests")


@pytest.fixture(scope="module")
def stacked(network: FiTv2) -> StackedModulation:
    return StackedModulation(network)


def test_rows_one_by_one_are_those_of_a_step_of_their_own(stacked: StackedModulation):
    timestep, label = torch.linspace(0, 1, 7), torch.arange(7)
    rows_RM = rows_one_by_one(stacked, timestep, label)
    atol = TOLERANCE[rows_RM.dtype]
    torch.testing.assert_close(rows_RM, stacked.rows(timestep, label), atol=atol, rtol=0.0)
    for i in (6, 2, 5):
        own = rows_one_by_one(stacked, timestep[i].reshape(1), label[i].reshape(1))
        assert torch.equal(own[0], rows_RM[i])


def test_fixed_tiles_share_the_weights_and_keep_their_names():
    network = make_toy_network()
    join_projections(network)
    before = network.state_dict()
    places = {key: tensor.data_ptr() for key, tensor in network.named_parameters()}
    use_fixed_tiles(network)
    layers = [m for m in network.modules() if isinstance(m, nn.Linear)]
    assert layers
    assert all(isinstance(m, FixedTilesLinear) and not m.training for m in layers)
    assert {key: tensor.data_ptr() for key, tensor in network.named_parameters()} == places
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
    use_fixed_tiles(network)  # once more changes nothing
    assert [m for m in network.modules() if isinstance(m, nn.Linear)] == layers


def test_fixed_tiles_join_what_would_multiply_past_them():
    network, plain = make_toy_network(), make_toy_network()
    use_fixed_tiles(network)
    assert network.state_dict().keys() == plain.state_dict().keys()
    layout = layout_of_grids([(2, 3)], plain.config.head_dim, plain.config.rope)
    tokens = torch.randn(6, plain.config.token_channels)
    step = (tokens, layout, torch.tensor([0.3]), torch.tensor([1]))
    torch.testing.assert_close(network(*step), plain(*step), atol=3e-5, rtol=0.0)


def test_fixed_tiles_want_no_gradient():
    layer = FixedTilesLinear(nn.Linear(3, 4))
    with pytest.raises(ValueError, match="linear_fixed_tiles has no gradient"):
        layer(torch.zeros(2, 3))
    with torch.inference_mode():
        assert layer(torch.zeros(2, 3)).shape == (2, 4)


def test_reference_operators_are_an_obstacle_to_fixed_tiles(network: FiTv2):
    assert fixed_tiles_obstacle(network) == "operators are reference; they must be fused"
