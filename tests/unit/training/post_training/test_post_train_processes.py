"""Two processes post-train what one does, and one of them writes what is served."""

from dataclasses import replace
from pathlib import Path

import pytest

from fit_models.adapter import load_adapter
from fit_models.bundle import load_bundle
from fit_training.post_training.config import METHODS
from fit_training.post_training.run import post_train
from support.toy_bundle import make_toy_bundle
from support.toy_post_run import toy_post_run, write_data
from support.toy_run import saved
from support.training_processes import Run, train_in_processes


@pytest.mark.slow
def test_two_processes_post_train_what_one_does(tmp_path: Path):
    base = make_toy_bundle(tmp_path / "base")
    data = write_data(tmp_path / "data")
    alone = [
        toy_post_run(base, data, tmp_path / f"{method}-alone", method, micro_batches=2)
        for method in METHODS
    ]
    together = [replace(run, output=run.output.replace("alone", "two")) for run in alone]
    for run in alone:
        post_train(run)
    train_in_processes(2, [Run(run) for run in together])
    for one, two in zip(alone, together, strict=True):
        for name, weight in saved(one)["averaged"].items():
            found = saved(two)["averaged"][name]
            assert (found - weight).abs().max() < 2e-4, (one.method, name)
    load_adapter(tmp_path / "lora-two" / "adapter")
    for method in ("high-resolution", "few-step"):
        load_bundle(str(tmp_path / f"{method}-two" / "bundle"))
