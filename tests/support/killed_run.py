"""A training run in a process of its own that is killed, with SIGKILL, at a chosen point."""

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

from fit_training.loop.config import TrainConfig
from fit_training.loop.run import train


def train_and_be_killed(config: TrainConfig, point: int) -> int | None:
    """Train in another process until the `point`-th event; returns how the process ended.

    Events are rows of the log, and before each of them: a sync (half the file is on the disk then)
    and a rename of a checkpoint.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fit_training.loop.trainer"])
    process = context.Process(target=_run, args=(config, point))
    process.start()
    process.join()
    return process.exitcode


def _run(config: TrainConfig, point: int) -> None:
    left = point
    fsync, rename = os.fsync, os.rename

    def event(handle: int | None = None) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            if handle is not None and ".unfinished/" in os.readlink(f"/proc/self/fd/{handle}"):
                os.ftruncate(handle, os.fstat(handle).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    def counted_fsync(handle: int) -> None:
        event(handle)
        fsync(handle)

    def counted_rename(source: Any, target: Path) -> None:
        event()
        rename(source, target)

    os.fsync, os.rename = counted_fsync, counted_rename  # pyright: ignore[reportAttributeAccessIssue]
    train(config, lambda _row: event())
