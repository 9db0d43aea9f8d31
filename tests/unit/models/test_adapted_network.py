"""Adapters begin as nothing, are all that trains, and leave the old labels alone."""

import pytest
import torch
from torch import Tensor

from fit_models.adapted_network import adapter_state, add_adapters
from fit_models.networks.fitv2 import FiTv2
from fit_models.packing import layout_of_grids
from support.toy_adapter import make_adapted_network
from support.toy_bundle import make_toy_network

GRIDS = [(2, 3), (5, 4), (1, 7)]


def predict(network: FiTv2, labels: list[int]) -> Tensor:
    """Velocities of a packed batch of several sizes."""
    config = network.config
    layout = layout_of_grids(GRIDS, config.head_dim, config.rope)
    generator = torch.Generator().manual_seed(1)
    tokens_TK = torch.randn(layout.num_tokens, config.token_channels, generator=generator)
    return network(tokens_TK, layout, torch.tensor([0.1, 0.5, 0.9]), torch.tensor(labels))


@torch.no_grad()  # with gradients, attention may take another form
def test_a_fresh_adapter_changes_nothing_bit_for_bit():
    adapted = make_adapted_network(trained=False)
    assert torch.equal(predict(adapted, [0, 2, 3]), predict(make_toy_network(), [0, 2, 3]))


@torch.no_grad()
def test_new_classes_alone_leave_old_labels_and_the_null_label_as_they_were():
    adapted = make_adapted_network(num_new_classes=2, trained=False)
    assert (adapted.config.num_classes, adapted.config.null_label) == (5, 5)
    before = predict(make_toy_network(), [0, 2, 3])
    assert torch.equal(predict(adapted, [0, 2, 5]), before)
    # a new class begins as the null label
    assert torch.equal(predict(adapted, [0, 2, 4]), before)


def test_the_state_dict_is_the_bases_and_the_adapters():
    adapted, base = make_adapted_network(num_new_classes=2), make_toy_network()
    state, own = adapted.state_dict(), adapter_state(adapted)
    assert state.keys() - own.keys() == base.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in base.state_dict().items())
    assert adapter_state(state).keys() == own.keys()
    assert len(own) == 2 * 5 * adapted.config.depth + 1


def test_the_adapter_is_all_that_trains_and_all_of_it_does():
    adapted = make_adapted_network(num_new_classes=2)
    trainable = {name for name, weight in adapted.named_parameters() if weight.requires_grad}
    assert trainable == adapter_state(adapted).keys()
    predict(adapted, [0, 3, 4]).square().mean().backward()
    for name, weight in adapted.named_parameters():
        assert (weight.grad is not None and bool(weight.grad.any())) == (name in trainable), name


def test_a_step_of_gradient_descent_lowers_the_loss():
    adapted = make_adapted_network(trained=False)
    target = predict(make_toy_network(seed=1), [0, 1, 2])
    trainable = [weight for weight in adapted.parameters() if weight.requires_grad]
    losses = []
    for _ in range(3):
        loss = (predict(adapted, [0, 1, 2]) - target).square().mean()
        losses.append(float(loss.detach()))
        for weight, gradient in zip(trainable, torch.autograd.grad(loss, trainable), strict=True):
            weight.data -= 0.1 * gradient
    assert losses == sorted(losses, reverse=True)


def test_adapters_stay_float32_over_a_bfloat16_base():
    network = make_toy_network().bfloat16()
    add_adapters(network, 2, 2.0, torch.Generator(), 1)
    assert {weight.dtype for weight in adapter_state(network).values()} == {torch.float32}
    with torch.no_grad():
        config = network.config
        layout = layout_of_grids([(2, 2)], config.head_dim, config.rope)
        tokens_TK = torch.randn(4, config.token_channels).bfloat16()
        out = network(tokens_TK, layout, torch.zeros(1), torch.tensor([3]))
    assert out.dtype == torch.bfloat16


def test_the_same_generator_draws_the_same_adapter():
    one, again, other = (adapter_state(make_adapted_network(seed=seed)) for seed in (0, 0, 1))
    name = "blocks.1.mlp.fc2.lora_A.weight"
    assert torch.equal(one[name], again[name])
    assert not torch.equal(one[name], other[name])


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="adapter rank is 0; it must be at least 1"):
        add_adapters(make_toy_network(), 0, 1.0, torch.Generator())
    with pytest.raises(ValueError, match="num_new_classes is -1; it must be at least 0"):
        add_adapters(make_toy_network(), 1, 1.0, torch.Generator(), -1)
