"""A run that is killed again and again ends with the same bits as one that never was."""

import random
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from fit_training.loop.run import train
from support.killed_run import train_and_be_killed
from support.toy_latents import write_toy_latents
from support.toy_run import differences, logged, saved, toy_run

EVENTS_PER_CHECKPOINT = 12  # about: three rows, six syncs, two or three renames


def check(folder: Path, kills: int, num_steps: int) -> None:
    latents = write_toy_latents(folder / "latents")
    broken = replace(toy_run(latents, folder / "broken"), num_steps=num_steps, num_threads=1)
    broken = replace(broken, keep_checkpoints=2)
    whole = replace(broken, output=str(folder / "whole"))
    train(whole)
    points = random.Random(0)
    for number in range(kills):
        point = points.randint(1, 2 * EVENTS_PER_CHECKPOINT)
        assert train_and_be_killed(broken, point) == -signal.SIGKILL
        log = Path(broken.output) / "log.jsonl"
        if number % 3 == 0 and log.exists():
            with log.open("a") as file:
                file.write('{"step": 3, "lo')
    train(broken)
    one, two = saved(whole), saved(broken)
    assert differences({**one, "config": None}, {**two, "config": None}) == []
    losses = {row["step"]: row["loss"] for row in logged(whole)}
    rows = logged(broken)
    assert [row for row in rows if losses[row["step"]] != row["loss"]] == []
    assert {row["step"] for row in rows} == set(range(1, num_steps + 1))
    assert not list(Path(broken.output).glob(".*"))


def test_two_kills_change_no_bit(tmp_path: Path):
    check(tmp_path, kills=2, num_steps=20)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_twenty_kills_change_no_bit(tmp_path: Path):
    check(tmp_path, kills=20, num_steps=200)
