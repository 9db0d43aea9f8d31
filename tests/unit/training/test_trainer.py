"""A run: it learns, it can be stopped anywhere, and goes on as if it had never been stopped."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fit_training.config import TrainConfig
from fit_training.data import LatentDataset
from fit_training.state import load_newest_checkpoint
from fit_training.trainer import Trainer, train
from support.toy_latents import IMAGES, write_toy_latents

NUM_STEPS = 6
EVERYTHING = np.arange(len(IMAGES))


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_latents(tmp_path_factory.mktemp("latents"))


@pytest.fixture
def config(latents: Path, tmp_path: Path) -> TrainConfig:
    """Six steps over two epochs and a bit, a checkpoint in the middle."""
    return TrainConfig(
        data=str(latents),
        output=str(tmp_path / "run"),
        model="FiTv2-toy/2",
        num_steps=NUM_STEPS,
        tokens_per_batch=50,
        warmup_steps=2,
        decay_steps=2,
        alignment_block=1,
        log_every=1,
        checkpoint_every=3,
        keep_checkpoints=5,
        device="cpu",
    )


def saved(config: TrainConfig) -> dict[str, Any]:
    state = load_newest_checkpoint(Path(config.output))
    assert state is not None
    return state


def logged(config: TrainConfig) -> list[dict[str, Any]]:
    lines = (Path(config.output) / "log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def differences(left: Any, right: Any, path: str = "") -> list[str]:
    """Where two states differ in any bit."""
    if isinstance(left, dict) and isinstance(right, dict) and left.keys() == right.keys():
        return [d for k in left for d in differences(left[k], right[k], f"{path}/{k}")]
    if isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        pairs = enumerate(zip(left, right, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, f"{path}/{i}")]
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return [] if left.dtype == right.dtype and torch.equal(left, right) else [path]
    return [] if left == right else [path]


def stop_at(step: int):
    def on_progress(row: dict[str, Any]) -> None:
        if row["step"] == step and "loss" in row:
            os.kill(os.getpid(), signal.SIGTERM)

    return on_progress


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("stop", [3, 4])  # with its checkpoint, and between two
def test_a_stopped_run_goes_on_bit_for_bit(
    config: TrainConfig, tmp_path: Path, precision: str, optimizer: str, stop: int
):
    whole = replace(config, precision=precision, optimizer=optimizer)
    broken = replace(whole, output=str(tmp_path / "broken"))
    train(whole)
    path = train(broken, stop_at(stop))
    assert path.name == f"checkpoint-{stop:08d}.pt"
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


def test_a_finished_run_is_not_trained_further(config: TrainConfig):
    train(config)
    before = saved(config)
    assert train(config).name == f"checkpoint-{NUM_STEPS:08d}.pt"
    assert differences(before, saved(config)) == []
    assert len(logged(config)) == NUM_STEPS


def test_the_last_step_is_saved_whatever_the_interval(config: TrainConfig):
    path = train(replace(config, checkpoint_every=4))
    names = sorted(p.name for p in path.parent.glob("checkpoint-*"))
    assert names == ["checkpoint-00000004.pt", "checkpoint-00000006.pt"]


def test_the_handler_of_sigterm_is_put_back(config: TrainConfig):
    before = signal.getsignal(signal.SIGTERM)
    train(replace(config, num_steps=1))
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_learning_rate_is_the_curve_for_every_optimizer(config: TrainConfig):
    trainer = Trainer(config)
    wanted = [0.5, 1.0, 1.0, 1.0, 1.0, 0.5]
    for factor, batch in zip(wanted, trainer.batches(), strict=False):
        scalars = trainer.train_step(batch)
        assert scalars["learning_rate"] == pytest.approx(factor * config.learning_rate)
        rates = {g["lr"] for optimizer in trainer.optimizers for g in optimizer.param_groups}
        assert rates == {scalars["learning_rate"]}


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


def test_classes_that_are_left_out_are_not_in_the_network(config: TrainConfig):
    trainer = Trainer(replace(config, classes=("dog", "ant")))
    assert trainer.network.config.num_classes == 2
    assert trainer.network.y_embedder.embedding_table.weight.shape[0] == 3
