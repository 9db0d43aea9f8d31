"""Averaged weights: an exponential average in fp32 that follows the network and is not it."""

import pytest
import torch
from torch import nn

from fit_training.loop.ema import AveragedWeights


def network_of(value: float, dtype: torch.dtype = torch.float32) -> nn.Linear:
    network = nn.Linear(3, 2).to(dtype)
    for parameter in network.parameters():
        nn.init.constant_(parameter, value)
    return network


def test_it_begins_as_a_copy_of_the_network():
    network = network_of(1.0)
    averaged = AveragedWeights(network, 0.9)
    nn.init.zeros_(network.weight)
    assert averaged.weights.keys() == network.state_dict().keys()
    assert torch.equal(averaged.weights["weight"], torch.ones(2, 3))


def test_each_update_moves_by_one_minus_the_decay_and_faster_early_on():
    network = network_of(0.0)
    averaged = AveragedWeights(network, 0.5)
    wanted = 0.0
    for update in range(1, 30):
        nn.init.constant_(network.weight, float(update))
        averaged.update(network)
        decay = min(0.5, (1 + update) / (10 + update))
        wanted = decay * wanted + (1 - decay) * update
        torch.testing.assert_close(averaged.weights["weight"], torch.full((2, 3), wanted))
    assert averaged.num_updates == 29
    assert torch.equal(network.weight, torch.full((2, 3), 29.0))  # which was not touched


def test_a_network_that_stands_still_is_reached():
    averaged = AveragedWeights(network_of(0.0), 0.9)
    still = network_of(4.0)
    for _ in range(200):
        averaged.update(still)
    torch.testing.assert_close(averaged.weights["bias"], torch.full((2,), 4.0))


def test_averages_are_fp32_whatever_the_network():
    """bf16 could not take a step of a thousandth of the weight."""
    network = network_of(1.0, torch.bfloat16)
    averaged = AveragedWeights(network, 0.999)
    nn.init.constant_(network.weight, 2.0)
    averaged.num_updates = 10_000
    averaged.update(network)
    assert averaged.weights["weight"].dtype == torch.float32
    torch.testing.assert_close(averaged.weights["weight"], torch.full((2, 3), 1.001))


def test_updates_make_no_graph():
    network = network_of(1.0)
    averaged = AveragedWeights(network, 0.9)
    averaged.update(network)
    assert not any(weight.requires_grad for weight in averaged.weights.values())


def test_a_restored_average_goes_on_as_the_old_one():
    network = network_of(3.0)
    old, new = AveragedWeights(network_of(0.0), 0.9), AveragedWeights(network_of(7.0), 0.9)
    old.update(network)
    new.restore({k: v.clone() for k, v in old.weights.items()}, old.num_updates)
    for averaged in (old, new):
        averaged.update(network)
    assert new.num_updates == 2
    assert all(torch.equal(new.weights[k], v) for k, v in old.weights.items())
    with pytest.raises(AssertionError):
        new.restore({"weight": torch.zeros(2, 3)}, 1)
