"""Laws of averaged training: the rate's shape, the average, and going on as if never stopped."""

import pytest
import torch
from torch import nn

from fit_training.autoencoder.averaged_training import AveragedTraining, TrainingPlan

PLAN = TrainingPlan(steps=150, learning_rate=0.1, warmup_steps=4, average=0.5, weight_decay=0.0)


def network() -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Linear(3, 1)


def advance(training: AveragedTraining, steps: int) -> None:
    for _ in range(steps):
        generator = torch.Generator().manual_seed(training.step)
        inputs = torch.randn(16, 3, generator=generator)
        wanted = inputs.sum(dim=1, keepdim=True)
        training.advance((training.network(inputs) - wanted).square().mean())


def test_the_rate_rises_then_falls_to_zero():
    rates = [PLAN.learning_rate_at(step) for step in range(PLAN.steps + 1)]
    top = rates.index(max(rates))
    assert top == PLAN.warmup_steps - 1
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[0] > 0
    assert rates[-1] == pytest.approx(0)
    assert max(rates) <= PLAN.learning_rate


def test_it_learns_and_its_average_follows(tmp_path):
    training = AveragedTraining("sum", network(), PLAN, tmp_path / "sum.pt")
    advance(training, PLAN.steps)
    assert training.finished
    weight = training.network.get_parameter("weight")
    torch.testing.assert_close(weight, torch.ones(1, 3), atol=0.1, rtol=0)
    torch.testing.assert_close(training.average["weight"], weight.detach(), atol=0.05, rtol=0)


def test_the_average_of_the_first_step_is_mostly_the_new_weights(tmp_path):
    training = AveragedTraining("sum", network(), PLAN, tmp_path / "sum.pt")
    before = training.average["weight"].clone()
    advance(training, 1)
    after = training.network.get_parameter("weight").detach()
    torch.testing.assert_close(training.average["weight"], before + (after - before) * 9 / 11)


def test_a_stopped_training_goes_on_as_if_it_had_not_been(tmp_path):
    whole = AveragedTraining("sum", network(), PLAN, tmp_path / "whole.pt")
    advance(whole, 20)
    first = AveragedTraining("sum", network(), PLAN, tmp_path / "sum.pt")
    advance(first, 9)
    first.save()
    advance(first, 5)  # lost: after the checkpoint
    second = AveragedTraining("sum", network(), PLAN, tmp_path / "sum.pt")
    assert second.step == 9
    advance(second, 11)
    for key, value in whole.network.state_dict().items():
        assert torch.equal(second.network.state_dict()[key], value)
        assert torch.equal(second.average[key], whole.average[key])


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    AveragedTraining("sum", network(), PLAN, tmp_path / "sum.pt").save()
    with pytest.raises(ValueError, match="of another network"):
        AveragedTraining("sum", nn.Linear(4, 1), PLAN, tmp_path / "sum.pt")


@pytest.mark.parametrize(
    ("field", "value"),
    [("steps", -1), ("learning_rate", 0.0), ("warmup_steps", 0), ("average", 1.0), ("average", -1)],
)
def test_a_plan_out_of_range_is_refused(field, value):
    with pytest.raises(ValueError, match=f"{field}: {value}"):
        TrainingPlan(**{"steps": 10, field: value})
