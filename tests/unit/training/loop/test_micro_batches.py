"""How a step is cut and who computes it changes nothing: not the images, not the gradient."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fit_training.loop import question as question_module
from fit_training.loop.config import TrainConfig
from fit_training.loop.data import LatentDataset
from fit_training.loop.micro_batches import OptimizerStep, optimizer_steps
from fit_training.loop.random_choices import RandomChoices, micro_batch_generator
from fit_training.loop.trainer import Trainer
from support.toy_bundle import make_toy_network
from support.toy_latents import CLASS_NAMES, write_toy_latents
from support.toy_run import toy_run


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    folder = write_toy_latents(tmp_path_factory.mktemp("latents"))
    return replace(toy_run(folder, folder / "run"), precision="float32")


@pytest.fixture(scope="module")
def data(config: TrainConfig) -> LatentDataset:
    return LatentDataset(Path(config.data))


@given(
    world_size=st.integers(1, 4),
    rounds=st.integers(1, 3),
    tokens=st.integers(5, 60),
    epoch=st.integers(0, 50),
)
def test_processes_together_see_every_image_of_an_epoch_once(
    data: LatentDataset, world_size: int, rounds: int, tokens: int, epoch: int
):
    plan = data.epoch(tokens, 1.0, 0, epoch)
    seen: list[int] = []
    for step in optimizer_steps(plan, data.lengths, world_size * rounds):
        shares = [step.share(rank, world_size) for rank in range(world_size)]
        assert len({len(share) for share in shares}) == 1  # all exchange weights equally often
        parts = [part for share in shares for part in share]
        working = [part for part in parts if part.image_weight > 0]
        assert sorted(part.index for part in working) == list(range(len(step.images)))
        assert sum(part.image_weight for part in parts) == pytest.approx(1.0)
        assert sum(part.token_weight for part in parts) == pytest.approx(1.0)
        seen += [image for part in working for image in part.images.tolist()]
    assert sorted(seen) == list(range(len(data)))


@given(start=st.integers(0, 12), micro_batches=st.integers(1, 4))
def test_steps_go_on_from_any_micro_batch(data: LatentDataset, start: int, micro_batches: int):
    plan = data.epoch(20, 1.0, 0, 0)
    steps = optimizer_steps(plan, data.lengths, micro_batches, start)
    left = [images.tolist() for step in steps for images in step.images]
    assert left == [images.tolist() for images in plan[start:]]


def test_every_micro_batch_of_a_run_has_its_own_draws():
    seeds = {
        micro_batch_generator(seed, step, index).initial_seed() % 2**32
        for seed in range(3)
        for step in range(200)
        for index in range(16)
    }
    assert len(seeds) == 3 * 200 * 16


def gradients(trainer: Trainer, step: OptimizerStep) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Loss and gradients of a step, without taking it."""
    losses = trainer.accumulate(step)
    parameters = [*trainer.network.parameters(), *trainer.head.parameters()]
    found = [p.grad.clone() for p in parameters if p.grad is not None]
    assert len(found) == len(parameters)
    trainer.network.zero_grad()
    trainer.head.zero_grad()
    return losses, found


def open_gates(trainer: Trainer) -> Trainer:
    network = make_toy_network(num_classes=len(CLASS_NAMES))
    trainer.network.load_state_dict(network.state_dict())
    return trainer


def draws_of_the_images(
    tokens_TK: torch.Tensor, num_sequences: int, _generator: torch.Generator, _dropout: float
) -> RandomChoices:
    """The same for an image wherever it lies: noise from its own tokens, one noise level."""
    return RandomChoices(
        torch.full((num_sequences,), 0.4),
        (7.0 * tokens_TK).sin(),
        torch.zeros(num_sequences, dtype=torch.bool),
    )


def test_four_micro_batches_have_the_gradient_of_one_batch(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
):
    """They have unlike numbers of images and tokens."""
    monkeypatch.setattr(question_module, "draw_choices", draws_of_the_images)
    trainer = open_gates(Trainer(config))
    images = np.arange(12)
    cut = (images[:1], images[1:6], images[6:8], images[8:])
    (whole,) = optimizer_steps([images], trainer.data.lengths, 1)
    (parts,) = optimizer_steps(cut, trainer.data.lengths, 4)
    assert (whole.num_images, whole.num_tokens) == (parts.num_images, parts.num_tokens)
    losses, wanted = gradients(trainer, whole)
    found_losses, found = gradients(trainer, parts)
    torch.testing.assert_close(found_losses, losses, atol=1e-6, rtol=0.0)
    for one, other in zip(wanted, found, strict=True):
        torch.testing.assert_close(other, one, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_recomputed_activations_have_the_same_gradient(config: TrainConfig, precision: str):
    kept = open_gates(Trainer(replace(config, precision=precision)))
    anew = open_gates(Trainer(replace(config, precision=precision, activation_checkpointing=True)))
    anew.head.load_state_dict(kept.head.state_dict())
    step = next(kept.steps())
    runs = [0]

    def count(*_: object) -> None:
        runs[0] += 1

    for block in anew.network.blocks:
        block.get_submodule("attn").register_forward_hook(count)
    losses, wanted = gradients(kept, step)
    found_losses, found = gradients(anew, step)
    assert runs == [2 * len(anew.network.blocks)]
    assert torch.equal(losses, found_losses)
    assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))
