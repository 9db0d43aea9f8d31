"""The processes of a run, one per device, as torchrun starts them.

Knows rank, device and how to agree; not networks (`fit_training.loop.sharding`) or data. One
process needs neither torchrun nor a process group.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Result = TypeVar("Result")


@dataclass(frozen=True)
class Processes:
    """This process among all of a run.

    Attributes:
        device: where this process computes.
        rank: this process, counted from 0; 0 logs and saves.
        world_size: how many there are.
    """

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process logs and saves."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """Add up a tensor over all processes, in place."""
        if self.world_size > 1:
            dist.all_reduce(value)
        return value

    def any(self, value: bool) -> bool:
        """Whether it is true in any process; all must ask."""
        if self.world_size == 1:
            return value
        return bool(self.sum(torch.tensor(float(value), device=self.device)))

    def on_main(self, action: Callable[[], Result]) -> Result:
        """Do something in the main process; all wait for it and get its result.

        Raises:
            OSError, ValueError: the action raised it; so does every process then.
        """
        if self.world_size == 1:
            return action()
        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = action()
            except (OSError, ValueError) as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome, src=0)
        result, error = outcome
        if error is not None:
            raise error
        return result

    def require_same(self, name: str, value: int) -> None:
        """Raise where processes differ.

        Raises:
            ValueError: a process has another value than the main one.
        """
        if (main := self.on_main(lambda: value)) != value:
            raise ValueError(
                f"{name} is {value} in process {self.rank} and {main} in process 0; "
                "all processes must read the same output folder"
            )


def is_main_of_environment() -> bool:
    """Whether this process is the first of those that torchrun started, or alone."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def processes_of_environment(device: str) -> Iterator[Processes]:
    """Join the processes that torchrun started, until the end of the block.

    Args:
        device: "auto", "cpu" or "cuda"; of several, each process takes the one of its local rank.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield one_process(device)
        return
    kind = one_process(device).device.type
    place = torch.device(kind)
    if kind == "cuda":
        place = torch.device(kind, int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(place)
    dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    try:
        yield Processes(place, dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def one_process(device: str) -> Processes:
    """A run of this process alone."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return Processes(torch.device(device))
