"""Ternary layers: what their files may hold, and what they refuse."""

from __future__ import annotations

import pytest
import torch

from fit_kernels.ternary_weights import pack_ternary, ternarised, unpack_ternary
from fit_models.ternary import FakeTernaryLinear, TernaryLinear


def test_the_layer_served_is_the_layer_trained() -> None:
    torch.manual_seed(0)
    trained, served = FakeTernaryLinear(33, 12, bias=True), TernaryLinear(33, 12, bias=True)
    served.load_state_dict(trained.state_dict(), strict=True)
    served.requires_grad_(False)
    x = torch.randn(5, 33)
    torch.testing.assert_close(served(x), trained(x), atol=2e-6, rtol=0.0)


def test_two_bits_a_weight_and_no_copy() -> None:
    layer = TernaryLinear(64, 32)
    layer.load_state_dict({"weight": torch.randn(32, 64), "alphas": torch.ones(1)})
    assert layer.weight.dtype == torch.uint8
    assert layer.weight.nbytes * 4 == 64 * 32
    assert layer.to(torch.bfloat16).weight.dtype == torch.uint8


def test_packing_is_undone_by_unpacking() -> None:
    values = torch.randint(-1, 2, (20, 7))
    assert torch.equal(unpack_ternary(pack_ternary(values)), values.float())
    with pytest.raises(ValueError, match="multiple of 4"):
        pack_ternary(values[:3])


def test_halves_round_to_even_and_nothing_divides_by_zero() -> None:
    weight = torch.tensor([[0.25, 0.75, -0.25, 3.0]])  # the mean is 1.0625
    assert ternarised(weight).tolist() == [[0.0, 1.0, 0.0, 1.0]]
    assert not ternarised(torch.zeros(2, 2)).any()


def test_what_is_no_ternary_weight_is_refused() -> None:
    layer = TernaryLinear(4, 8)
    state = layer.state_dict()
    with pytest.raises(ValueError, match="the code 3"):
        layer.load_state_dict({**state, "weight": torch.full_like(state["weight"], 0xC0)})
    with pytest.raises(ValueError, match="no conversion of dtypes may touch"):
        layer.load_state_dict({**state, "weight": state["weight"].float()})
    with pytest.raises(RuntimeError, match="size mismatch"):
        layer.load_state_dict({**state, "weight": torch.zeros(8, 5)})
    with pytest.raises(ValueError, match="not a multiple of 4"):
        TernaryLinear(4, 6)


def test_a_gradient_passes_the_rounding_and_not_a_packed_layer() -> None:
    trained = FakeTernaryLinear(3, 4)
    x = torch.randn(2, 3, requires_grad=True)
    trained(x).sum().backward()
    assert trained.weight.grad is not None
    expected = trained.alphas.detach() * x.detach().sum(0).expand(4, 3)
    torch.testing.assert_close(trained.weight.grad, expected)
    with pytest.raises(ValueError, match="ternary_linear has no gradient"):
        TernaryLinear(3, 4)(x)
