"""Prepacked weights compute what the network computes, and are given under its names."""

import pytest
import torch
from torch import nn

from fit_models import prepacked
from fit_models.joined import JoinedSwiGLU
from fit_models.layers import SwiGLU
from fit_models.prepacked import PrepackedLinear, PrepackedSwiGLU, lay_out_weights
from support.toy_bundle import make_toy_network

needs_onednn = pytest.mark.skipif(
    not prepacked._can_prepack(torch.zeros(1)), reason="torch has no oneDNN here"
)


@needs_onednn
@pytest.mark.parametrize("num_tokens", [1, 7, 600])
def test_the_gated_mlp_computes_the_same(num_tokens: int):
    torch.manual_seed(0)
    mlp, x_TD = SwiGLU(12, 20).eval().requires_grad_(False), torch.randn(num_tokens, 12)
    torch.testing.assert_close(PrepackedSwiGLU(mlp)(x_TD), mlp(x_TD), atol=1e-6, rtol=1e-5)


@needs_onednn
def test_bfloat16_is_as_near_to_the_truth_as_before():
    if not prepacked._can_prepack(torch.zeros(1, dtype=torch.bfloat16)):
        pytest.skip("no bfloat16 products here")
    torch.manual_seed(0)
    exact = SwiGLU(64, 128).double().requires_grad_(False)
    x_TD = torch.randn(50, 64).bfloat16()
    expected = exact(x_TD.double())
    coarse = SwiGLU(64, 128).bfloat16().requires_grad_(False)
    coarse.load_state_dict(exact.state_dict())
    errors = [(mlp(x_TD) - expected).norm() for mlp in (PrepackedSwiGLU(coarse), coarse)]
    assert errors[0] <= 1.1 * errors[1]


@needs_onednn
def test_every_block_is_prepacked_and_the_weights_keep_their_names():
    network = make_toy_network().requires_grad_(False)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    for _ in range(2):  # once more changes nothing
        lay_out_weights(network)
        assert all(
            isinstance(block.get_submodule("mlp"), PrepackedSwiGLU) for block in network.blocks
        )
        after = network.state_dict()
        assert after.keys() == before.keys()
        assert all(torch.equal(after[key], value) for key, value in before.items())
    assert sum(p.numel() for p in network.parameters()) == sum(v.numel() for v in before.values())


@pytest.mark.parametrize("error", [RuntimeError("no oneDNN"), AttributeError("no such operator")])
def test_without_the_operators_projections_are_joined(
    error: Exception, monkeypatch: pytest.MonkeyPatch
):
    def fail(_self: PrepackedLinear, _linear: nn.Linear) -> None:
        raise error

    monkeypatch.setattr(PrepackedLinear, "__init__", fail)
    network = make_toy_network().requires_grad_(False)
    lay_out_weights(network)
    assert all(isinstance(block.get_submodule("mlp"), JoinedSwiGLU) for block in network.blocks)


def test_other_dtypes_are_left_to_torch():
    assert not prepacked._can_prepack(torch.zeros(1, dtype=torch.float64))
    assert not prepacked._can_prepack(torch.zeros(1, device="meta"))
