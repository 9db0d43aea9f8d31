"""Several processes of one run on this machine, as torchrun would start them.

Knows torchrun's environment and a free port; not what is done in them. Imports little, since every
new process imports it again.
"""

import os
import socket
from collections.abc import Callable, Sequence

from torch.multiprocessing.spawn import spawn

from fit_training.loop.processes import Processes, processes_of_environment


def run_in_processes(world_size: int, *actions: Callable[[Processes], None]) -> None:
    """Do one thing after the other in `world_size` processes of a run and wait for all of them.

    Args:
        world_size: how many, on this machine.
        actions: a module's functions, or `partial`s of them, that a new process can import.
    """
    spawn(_join_and_do, (world_size, free_port(), actions), nprocs=world_size)


def _join_and_do(
    rank: int, world_size: int, port: int, actions: Sequence[Callable[[Processes], None]]
) -> None:
    set_environment(rank, world_size, port)
    with processes_of_environment("cpu") as processes:
        for action in actions:
            action(processes)


def set_environment(rank: int, world_size: int, port: int) -> None:
    """Say what torchrun would."""
    environment = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": world_size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    os.environ.update({name: str(value) for name, value in environment.items()})


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
