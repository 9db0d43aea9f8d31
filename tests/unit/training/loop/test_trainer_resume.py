"""A run can be stopped anywhere, and goes on as if it had never been stopped."""

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fit_training.loop.config import TrainConfig
from fit_training.loop.run import train
from fit_training.loop.trainer import Trainer
from support.toy_latents import IMAGES, write_toy_latents
from support.toy_run import NUM_STEPS, differences, logged, saved, toy_run


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_latents(tmp_path_factory.mktemp("latents"))


@pytest.fixture
def config(latents: Path, tmp_path: Path) -> TrainConfig:
    return toy_run(latents, tmp_path / "run")


def stop_at(step: int) -> Callable[[dict[str, Any]], None]:
    def on_progress(row: dict[str, Any]) -> None:
        if row["step"] == step and "loss" in row:
            os.kill(os.getpid(), signal.SIGTERM)

    return on_progress


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("stop", [3, 4])  # with its checkpoint, and between two
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_stopped_run_goes_on_bit_for_bit(
    config: TrainConfig,
    tmp_path: Path,
    precision: str,
    optimizer: str,
    stop: int,
    micro_batches: int,
):
    whole = replace(
        config,
        precision=precision,
        optimizer=optimizer,
        micro_batches=micro_batches,
        tokens_per_batch=config.tokens_per_batch // micro_batches,
    )
    broken = replace(whole, output=str(tmp_path / "broken"))
    train(whole)
    path = train(broken, stop_at(stop))
    assert path.name == f"checkpoint-{stop:08d}"
    assert saved(broken)["progress"][0] == stop
    torch.manual_seed(1234)  # whatever the process did in between
    train(broken)
    one, two = saved(whole), saved(broken)
    assert one["progress"][:2] > [NUM_STEPS - 1, 0]
    assert differences({**one, "config": None}, {**two, "config": None}) == []
    losses = [[row["loss"] for row in logged(run)] for run in (whole, broken)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == NUM_STEPS


def test_the_same_run_twice_is_the_same(config: TrainConfig, tmp_path: Path):
    again = replace(config, output=str(tmp_path / "again"))
    train(config)
    train(again)
    assert differences(saved(config)["averaged"], saved(again)["averaged"]) == []
    other = replace(config, output=str(tmp_path / "other"), seed=1)
    train(other)
    assert differences(saved(config)["averaged"], saved(other)["averaged"]) != []


def test_a_finished_run_is_not_trained_further(config: TrainConfig):
    train(config)
    before = saved(config)
    assert train(config).name == f"checkpoint-{NUM_STEPS:08d}"
    assert differences(before, saved(config)) == []
    assert len(logged(config)) == NUM_STEPS


def test_the_last_step_is_saved_whatever_the_interval(config: TrainConfig):
    path = train(replace(config, checkpoint_every=4))
    names = sorted(p.name for p in path.parent.glob("checkpoint-*"))
    assert names == ["checkpoint-00000004", "checkpoint-00000006"]


def test_the_handler_of_sigterm_is_put_back(config: TrainConfig):
    before = signal.getsignal(signal.SIGTERM)
    train(replace(config, num_steps=1))
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_run_goes_on_with_its_own_normalisation_when_the_folder_has_grown(
    config: TrainConfig, tmp_path: Path
):
    """More photographs arrive: a new epoch begins, and the latent space stays what it was."""
    folder = write_toy_latents(tmp_path / "grown", IMAGES[:12], num_shards=1)
    first = replace(config, data=str(folder), num_steps=2)
    train(first)
    state = saved(first)
    (folder / "index.json").unlink()
    write_toy_latents(folder)
    trainer = Trainer(replace(first, num_steps=NUM_STEPS))
    assert [trainer.data.latent_shift, trainer.data.latent_scale] != state["latents"]
    trainer.restore(state)
    assert [trainer.data.latent_shift, trainer.data.latent_scale] == state["latents"]
    assert (trainer.epoch, trainer.position) == (state["progress"][1] + 1, 0)


def test_not_resuming_refuses_a_folder_with_checkpoints(config: TrainConfig):
    train(replace(config, num_steps=1), resume=False)
    with pytest.raises(ValueError, match="holds checkpoint-00000001; without resuming"):
        train(config, resume=False)
    assert saved(config)["progress"][0] == 1


@pytest.mark.parametrize("name", ["loss", "gradient_norm"])
def test_a_loss_that_is_lost_stops_the_run_and_keeps_the_last_checkpoint(
    config: TrainConfig, name: str, monkeypatch: pytest.MonkeyPatch
):
    real = Trainer.train_step

    def lost(trainer: Trainer, batch: Any) -> dict[str, float]:
        scalars = real(trainer, batch)
        return scalars if trainer.step < 5 else {**scalars, name: float("nan")}

    monkeypatch.setattr(Trainer, "train_step", lost)
    with pytest.raises(ValueError, match=rf"step 5: {name} is nan; .* keeps checkpoint-00000003"):
        train(config)
    assert saved(config)["progress"][0] == 3
