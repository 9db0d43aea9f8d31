"""Steps of a run: what each consists of, what is averaged, logged and validated; it learns."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fit_training.loop.config import TrainConfig
from fit_training.loop.data import LatentDataset
from fit_training.loop.ema import AveragedWeights
from fit_training.loop.run import train
from fit_training.loop.trainer import Trainer
from support.toy_latents import IMAGES, write_toy_latents
from support.toy_run import NUM_STEPS, differences, logged, saved, toy_run

EVERYTHING = np.arange(len(IMAGES))


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_latents(tmp_path_factory.mktemp("latents"))


@pytest.fixture
def config(latents: Path, tmp_path: Path) -> TrainConfig:
    return toy_run(latents, tmp_path / "run")


def test_a_run_crosses_epochs_and_counts_what_it_saw(config: TrainConfig):
    train(config)
    step, epoch, _, images = saved(config)["progress"]
    rows = logged(config)
    assert (step, [row["step"] for row in rows]) == (NUM_STEPS, list(range(1, NUM_STEPS + 1)))
    assert epoch >= 1
    assert rows[-1]["images_seen"] == images
    plans = [LatentDataset(Path(config.data)).epoch(50, 0.5, 0, e) for e in range(3)]
    batches = [batch for plan in plans for batch in plan][:NUM_STEPS]
    assert images == sum(len(batch) for batch in batches)


def test_the_learning_rate_is_the_curve_for_every_optimizer(config: TrainConfig):
    trainer = Trainer(config)
    wanted = [0.5, 1.0, 1.0, 1.0, 1.0, 0.5]
    for factor, batch in zip(wanted, trainer.steps(), strict=False):
        scalars = trainer.train_step(batch)
        assert scalars["learning_rate"] == pytest.approx(factor * config.learning_rate)
        rates = {g["lr"] for optimizer in trainer.optimizers for g in optimizer.param_groups}
        assert rates == {scalars["learning_rate"]}


def test_every_step_makes_its_own_random_choices(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
):
    seen: list[tuple[int, float]] = []
    losses = Trainer.losses

    def spy(self: Trainer, batch: Any, generator: torch.Generator, dropout: float):
        seen.append((generator.initial_seed(), dropout))
        return losses(self, batch, generator, dropout)

    monkeypatch.setattr(Trainer, "losses", spy)
    for seed in (0, 1):
        train(replace(config, output=f"{config.output}-{seed}", seed=seed, class_dropout=0.3))
    assert len({seed for seed, _ in seen}) == len(seen) == 2 * NUM_STEPS
    assert {dropout for _, dropout in seen} == {0.3}


def test_gradients_are_clipped_over_all_parameters_and_gone_after_the_step(config: TrainConfig):
    trainer = Trainer(replace(config, gradient_clip=0.05, precision="float32"))
    parameters = [*trainer.network.parameters(), *trainer.head.parameters()]
    clipped: list[float] = []

    def measure(*_: Any) -> None:
        norms = [p.grad.norm() for p in parameters if p.grad is not None]
        clipped.append(torch.stack(norms).norm().item())

    trainer.optimizers[0].register_step_pre_hook(measure)
    scalars = trainer.train_step(next(trainer.steps()))
    assert scalars["gradient_norm"] > 0.05
    assert clipped == pytest.approx([0.05], rel=1e-3)
    assert all(parameter.grad is None for parameter in parameters)


def test_the_served_weights_are_the_average_of_every_step(config: TrainConfig):
    trainer = Trainer(config)
    average = AveragedWeights(trainer.network, config.ema_decay)
    for _, batch in zip(range(4), trainer.steps(), strict=False):
        trainer.train_step(batch)
        average.update(trainer.network)
    assert differences(trainer.averaged.weights, average.weights) == []
    assert differences(trainer.state()["averaged"], trainer.network.state_dict()) != []


def test_it_learns(config: TrainConfig):
    """Forty steps on two dozen images: both losses fall."""
    long = replace(
        config,
        num_steps=40,
        checkpoint_every=40,
        learning_rate=1e-2,
        tokens_per_batch=130,
        precision="float32",
    )
    trainer = Trainer(long)
    first = trainer.losses(trainer.data.batch(EVERYTHING), torch.Generator().manual_seed(0), 0.0)
    train(long)
    trainer.restore(saved(long))
    last = trainer.losses(trainer.data.batch(EVERYTHING), torch.Generator().manual_seed(0), 0.0)
    assert last.flow < 0.9 * first.flow
    assert last.alignment < 0.9 * first.alignment


def test_validation_sees_every_image_with_the_same_noise_and_the_averaged_weights(
    config: TrainConfig, tmp_path: Path
):
    folder = write_toy_latents(tmp_path / "val", IMAGES[::3], seed=7)
    trainer = Trainer(replace(config, validation_data=str(folder), precision="float32"))
    live = {key: value.clone() for key, value in trainer.network.state_dict().items()}
    fresh = trainer.validation_loss()
    assert trainer.validation_loss() == fresh
    assert differences(trainer.network.state_dict(), live) == []  # put back afterwards
    # A fresh network predicts zero, so its loss is the mean square of data - noise: about 1 + 1.
    assert fresh == pytest.approx(2.0, abs=0.5)
    for weight in trainer.averaged.weights.values():
        weight += 0.05
    assert trainer.validation_loss() != fresh
    assert differences(trainer.network.state_dict(), live) == []


def test_validation_is_logged_with_every_checkpoint(config: TrainConfig, tmp_path: Path):
    folder = write_toy_latents(tmp_path / "val", IMAGES[::3], seed=7)
    seen: list[dict[str, Any]] = []
    train(replace(config, validation_data=str(folder), log_every=6), seen.append)
    assert [sorted({"loss", "validation_loss"} & row.keys()) for row in seen] == [
        ["validation_loss"],
        ["loss"],
        ["validation_loss"],
    ]
    assert [row["step"] for row in seen] == [3, 6, 6]
    assert seen == logged(replace(config, log_every=6))


def test_classes_that_are_left_out_are_not_in_the_network(config: TrainConfig):
    trainer = Trainer(replace(config, classes=("dog", "ant")))
    assert trainer.network.config.num_classes == 2
    assert trainer.network.y_embedder.embedding_table.weight.shape[0] == 3


def test_the_checkpoint_with_the_lowest_validation_loss_stays(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = write_toy_latents(tmp_path / "val", IMAGES[::3], seed=7)
    losses = iter([0.5, 0.2, 0.4, 0.3])
    monkeypatch.setattr(Trainer, "validation_loss", lambda _: next(losses))
    path = train(
        replace(
            config,
            validation_data=str(folder),
            num_steps=4,
            checkpoint_every=1,
            keep_checkpoints=1,
        )
    )
    kept = sorted(one.name for one in path.parent.glob("checkpoint-*"))
    assert kept == ["checkpoint-00000002", "checkpoint-00000004"]
