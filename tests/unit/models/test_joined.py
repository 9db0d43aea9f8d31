"""Joined projections compute what the network computes, and give its weights under its names."""

import pytest
import torch

from fit_models import joined
from fit_models.joined import JoinedSwiGLU, join_projections
from fit_models.layers import SwiGLU
from support.toy_bundle import make_toy_network


def made_mlp() -> SwiGLU:
    torch.manual_seed(0)
    return SwiGLU(12, 20).eval().requires_grad_(False)


@pytest.mark.parametrize("num_tokens", [1, 7, 50])
def test_one_projection_gives_what_two_give(num_tokens: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(joined, "_CACHED_TOKENS", 16)  # the longest is worked off in parts
    monkeypatch.setattr(joined, "_PART_TOKENS", 8)
    mlp, x_TD = made_mlp(), torch.randn(num_tokens, 12)
    torch.testing.assert_close(JoinedSwiGLU(mlp)(x_TD), mlp(x_TD), atol=1e-6, rtol=0.0)


def test_every_block_is_joined_and_the_weights_keep_their_names():
    network = make_toy_network()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    join_projections(network)
    assert all(isinstance(block.get_submodule("mlp"), JoinedSwiGLU) for block in network.blocks)
    after = network.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    join_projections(network)  # once more changes nothing
    assert network.state_dict().keys() == before.keys()
