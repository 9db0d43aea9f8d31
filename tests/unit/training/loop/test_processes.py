"""Several processes learn what one learns, and a run goes on in another number of them."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fit_training.export import read_run
from fit_training.loop.checkpoint_files import CHECKSUMS, RUN, STATE, slices_name
from fit_training.loop.config import TrainConfig
from fit_training.loop.data import LatentDataset
from fit_training.loop.processes import Processes, one_process, processes_of_environment
from fit_training.loop.run import train
from fit_training.loop.trainer import Trainer
from support.toy_latents import write_toy_latents
from support.toy_run import NUM_STEPS, logged, saved, toy_run
from support.training_processes import Run, train_in_processes

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """Steps of two micro-batches; an epoch's last step has one."""
    folder = tmp_path_factory.mktemp("runs")
    data = write_toy_latents(folder / "latents")
    validation = write_toy_latents(folder / "validation", seed=3)
    return replace(
        toy_run(data, folder / "alone"),
        validation_data=str(validation),
        micro_batches=2,
        tokens_per_batch=25,
        precision="float32",
        optimizer="adamw",
    )


def beside(config: TrainConfig, name: str) -> TrainConfig:
    """The same run with an output folder of its own."""
    return replace(config, output=str(Path(config.output).parent / name))


@pytest.fixture(scope="module")
def runs(config: TrainConfig) -> dict[str, TrainConfig]:
    """Runs of one process, and then of two: one start of processes for all."""
    alone = {
        "alone": config,
        "muon_alone": replace(beside(config, "muon_alone"), optimizer="muon"),
    }
    for run in alone.values():
        train(run)
    together = {
        "two": replace(beside(config, "two"), activation_checkpointing=True),
        "stopped": beside(config, "stopped"),
        "joined": beside(config, "joined"),
        "muon_two": replace(beside(config, "muon_two"), optimizer="muon"),
    }
    name = "checkpoint-00000003"
    shutil.copytree(Path(config.output) / name, Path(together["joined"].output) / name)
    stops = {"stopped": 4}
    started = [Run(run, stops.get(name, 0)) for name, run in together.items()]
    again = beside(config, "again")
    train_in_processes(2, [*started, Run(again, 4), Run(again)])
    together["again"] = again
    return {**alone, **together}


def assert_same_weights(one: TrainConfig, other: TrainConfig, limit: float) -> None:
    left, right = saved(one), saved(other)
    assert left["progress"] == right["progress"]
    for part in ("network", "head", "averaged"):
        assert left[part].keys() == right[part].keys()
        for name, weight in left[part].items():
            found = right[part][name]
            assert type(found) is torch.Tensor
            assert (found - weight).abs().max() < limit, name
    for one_saved, other_saved in zip(left["optimizers"], right["optimizers"], strict=True):
        for index, moments in one_saved["state"].items():
            for name, moment in moments.items():
                found = other_saved["state"][index][name]
                assert (found - moment).abs().max() < max(limit, 1e-4), (index, name)


def assert_same_log(one: TrainConfig, other: TrainConfig, first: int = 1) -> None:
    rows, others = ([r for r in logged(run) if r["step"] >= first] for run in (one, other))
    assert [row["step"] for row in rows if "loss" in row] == list(range(first, NUM_STEPS + 1))
    assert len(rows) == len(others)
    for row, found in zip(rows, others, strict=True):
        assert row.keys() == found.keys()
        measured = row.keys() - {"time", "tokens_per_s", "images_per_s"}
        for name in measured:
            assert found[name] == pytest.approx(row[name], rel=1e-4), (name, row["step"])


def test_the_runs_have_a_step_that_leaves_a_process_without_images(config: TrainConfig):
    plan = LatentDataset(Path(config.data)).epoch(25, config.class_balance, config.seed, 0)
    assert len(plan) % 2 == 1
    assert len(plan) < 2 * NUM_STEPS


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(runs: dict[str, TrainConfig]):
    """One of them keeps no activations, which changes nothing either."""
    assert_same_log(runs["alone"], runs["two"])
    assert_same_weights(runs["alone"], runs["two"], 1e-5)


@pytest.mark.slow
def test_two_processes_learn_what_one_learns_with_muon(runs: dict[str, TrainConfig]):
    """It computes in bfloat16 and takes full steps from gradients that are almost zero."""
    assert_same_log(runs["muon_alone"], runs["muon_two"])
    assert_same_weights(runs["muon_alone"], runs["muon_two"], 2e-3)


@pytest.mark.slow
def test_two_processes_go_on_where_one_was(runs: dict[str, TrainConfig]):
    assert_same_log(runs["alone"], runs["joined"], first=4)
    assert_same_weights(runs["alone"], runs["joined"], 1e-5)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_and_one_goes_on(runs: dict[str, TrainConfig]):
    stopped = runs["stopped"]
    assert saved(stopped)["progress"][0] == 4
    train(stopped)
    assert_same_log(runs["alone"], stopped)
    assert_same_weights(runs["alone"], stopped, 1e-5)


@pytest.mark.slow
def test_two_processes_go_on_where_two_were(runs: dict[str, TrainConfig]):
    assert_same_log(runs["alone"], runs["again"])
    assert_same_weights(runs["alone"], runs["again"], 1e-5)


@pytest.mark.slow
def test_of_two_processes_each_saves_its_slices(runs: dict[str, TrainConfig]):
    (path,) = Path(runs["two"].output).glob(f"checkpoint-*{NUM_STEPS}")
    files = {one.name: one.stat().st_size for one in path.iterdir()}
    assert files.keys() == {slices_name(0), slices_name(1), RUN, CHECKSUMS}
    (alone,) = Path(runs["alone"].output).glob(f"checkpoint-*{NUM_STEPS}/{STATE}")
    assert max(files[slices_name(0)], files[slices_name(1)]) < 0.75 * alone.stat().st_size


@pytest.mark.slow
def test_a_damaged_slice_leads_back_to_the_checkpoint_before(
    runs: dict[str, TrainConfig], tmp_path: Path
):
    damaged = replace(runs["two"], output=str(tmp_path / "damaged"))
    shutil.copytree(runs["two"].output, damaged.output)
    path = Path(damaged.output) / f"checkpoint-{NUM_STEPS:08d}" / slices_name(1)
    path.write_bytes(path.read_bytes()[:-1])
    assert saved(damaged)["progress"][0] == 3
    train(damaged)
    assert_same_weights(runs["alone"], damaged, 1e-5)


@pytest.mark.slow
def test_what_two_processes_saved_is_exported_as_what_one_saved(runs: dict[str, TrainConfig]):
    alone, two = (read_run(Path(runs[name].output)) for name in ("alone", "two"))
    assert (two.model_config, two.images_seen) == (alone.model_config, alone.images_seen)
    assert two.weights.keys() == alone.weights.keys()
    for name, weight in alone.weights.items():
        assert (two.weights[name] - weight).abs().max() < 1e-5, name


@pytest.mark.slow
def test_what_processes_save_has_the_form_of_what_one_saves(runs: dict[str, TrainConfig]):
    def form(value: object) -> object:
        if isinstance(value, dict):
            return {key: form(item) for key, item in value.items()}
        if isinstance(value, list):
            return [form(item) for item in value]
        return (value.shape, value.dtype) if isinstance(value, torch.Tensor) else type(value)

    assert form(saved(runs["alone"])) == form(saved(runs["two"]))


def test_micro_batches_that_cannot_be_dealt_out_evenly_are_refused(config: TrainConfig):
    message = "micro_batches is 2; it must be a multiple of the number of processes, 3"
    with pytest.raises(ValueError, match=message):
        Trainer(config, Processes(CPU, rank=1, world_size=3))


def test_one_process_needs_no_process_group(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with processes_of_environment("cpu") as processes:
        assert processes == one_process("cpu") == Processes(CPU)
        assert not torch.distributed.is_initialized()
        assert processes.is_main
        assert processes.any(True)
        assert not processes.any(False)
        assert processes.on_main(lambda: 7) == 7
        processes.require_same("step", 3)
        assert processes.sum(torch.ones(2)).tolist() == [1.0, 1.0]
