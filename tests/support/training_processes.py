"""Training runs in several processes on this machine, as torchrun would start them.

Knows torchrun's environment and a free port; not what is trained.
"""

import os
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.multiprocessing.spawn import spawn

from fit_training.loop.config import RunConfig
from fit_training.loop.run import train
from fit_training.post_training.config import PostTrainConfig
from fit_training.post_training.run import post_train


@dataclass(frozen=True)
class Run:
    """A run, and the step after which its first process is told to stop (0: never)."""

    config: RunConfig
    stop: int = 0


def train_in_processes(world_size: int, runs: Sequence[Run]) -> None:
    """Train one run after the other in `world_size` processes and wait for all of them."""
    ports = [_free_port() for _ in runs]  # one each: the store of the run before may still listen
    spawn(_train, (world_size, ports, runs), nprocs=world_size)


def _train(rank: int, world_size: int, ports: Sequence[int], runs: Sequence[Run]) -> None:
    for run, port in zip(runs, ports, strict=True):
        environment = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": world_size,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        os.environ.update({name: str(value) for name, value in environment.items()})

        def on_progress(row: dict[str, Any], stop: int = run.stop) -> None:
            assert rank == 0
            if row["step"] == stop and "loss" in row:
                os.kill(os.getpid(), signal.SIGTERM)

        if isinstance(run.config, PostTrainConfig):
            post_train(run.config, on_progress)
        else:
            train(run.config, on_progress)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
