"""Training runs in several processes on this machine, as torchrun would start them.

Knows when they are told to stop; not what is trained.
"""

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.multiprocessing.spawn import spawn

from fit_training.loop.config import RunConfig
from fit_training.loop.run import train
from fit_training.post_training.config import PostTrainConfig
from fit_training.post_training.run import post_train
from support.process_group import free_port, set_environment


@dataclass(frozen=True)
class Run:
    """A run, and the step after which its first process is told to stop (0: never)."""

    config: RunConfig
    stop: int = 0


def train_in_processes(world_size: int, runs: Sequence[Run]) -> None:
    """Train one run after the other in `world_size` processes and wait for all of them."""
    ports = [free_port() for _ in runs]  # one each: the store of the run before may still listen
    spawn(_train, (world_size, ports, runs), nprocs=world_size)


def _train(rank: int, world_size: int, ports: Sequence[int], runs: Sequence[Run]) -> None:
    for run, port in zip(runs, ports, strict=True):
        set_environment(rank, world_size, port)

        def on_progress(row: dict[str, Any], stop: int = run.stop) -> None:
            assert rank == 0
            if row["step"] == stop and "loss" in row:
                os.kill(os.getpid(), signal.SIGTERM)

        if isinstance(run.config, PostTrainConfig):
            post_train(run.config, on_progress)
        else:
            train(run.config, on_progress)
