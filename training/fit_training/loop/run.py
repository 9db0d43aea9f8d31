"""A whole training run: from its folder's newest checkpoint to its last step.

Knows when to log, to validate, to save and to stop. What a step is, is the trainer's
(`trainer.py`); what lies in the folder, `run_folder.py`'s.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fit_training.loop.checkpoints import checkpoint_path, load_newest_checkpoint, save_checkpoint
from fit_training.loop.config import RunConfig
from fit_training.loop.processes import Processes, processes_of_environment
from fit_training.loop.reports import RunReports
from fit_training.loop.run_folder import RunFolder
from fit_training.loop.sample_grid import SampleGrid, open_sample_grid
from fit_training.loop.sharding import whole_tree
from fit_training.loop.trainer import Trainer

OnProgress = Callable[[dict[str, Any]], None]


def train(
    config: RunConfig,
    on_progress: OnProgress | None = None,
    resume: bool = True,
    make_trainer: Callable[[RunConfig, Processes], Trainer] = Trainer,
) -> Path:
    """Train (or go on training) until `num_steps`; SIGTERM saves and returns.

    Started by torchrun, its processes share the work; the first one logs, reports and saves.

    Args:
        config: the run.
        on_progress: is given every row of the log.
        resume: go on from the newest good checkpoint in the output folder, if there is one.
        make_trainer: says what is trained and how.

    Returns:
        The newest checkpoint's path.

    Raises:
        ValueError: there are checkpoints but `resume` is False, or all of them are damaged; the
            loss is no longer finite.
        OSError: a checkpoint could not be written.
    """
    with processes_of_environment(config.device) as processes:
        folder = None
        if processes.is_main:
            folder = RunFolder(Path(config.output), config.keep_checkpoints, resume)
        processes.any(False)  # the others wait until the folder is mended
        return _train(make_trainer(config, processes), folder, on_progress)


def _train(trainer: Trainer, folder: RunFolder | None, on_progress: OnProgress | None) -> Path:
    """`folder` is the main process's alone."""
    config, processes = trainer.config, trainer.processes
    read = folder.newest_state if folder else partial(load_newest_checkpoint, Path(config.output))
    if (state := read(processes)) is not None:
        trainer.restore(state)
    processes.require_same("step", trainer.step)
    saved_step = trainer.step if state is not None else -1
    stop: list[int] = []
    previous = signal.signal(signal.SIGTERM, lambda number, _frame: stop.append(number))
    reports = _open_reports(folder, trainer, on_progress)
    plan = trainer.sample_plan()
    samples = open_sample_grid(config, trainer.data, plan, trainer.device) if reports else None
    started, tokens, images = time.monotonic(), 0, 0
    try:
        steps = trainer.steps()
        # First: a step drawn is trained on.
        while not processes.any(bool(stop)) and trainer.step < config.num_steps:
            step = next(steps)
            scalars = trainer.train_step(step)
            if folder is not None:
                folder.check_finite(trainer.step, scalars)
            tokens += step.num_tokens
            images += step.num_images
            if trainer.step % config.log_every == 0:
                seconds = time.monotonic() - started
                rates = {"tokens_per_s": tokens / seconds, "images_per_s": images / seconds}
                _report(reports, trainer, {**scalars, **rates})
                started, tokens, images = time.monotonic(), 0, 0
            if trainer.step % config.checkpoint_every == 0:
                score = None
                if trainer.validation is not None:
                    score = trainer.validation_loss()
                    _report(reports, trainer, {"validation_loss": score})
                _save(folder, trainer, score)
                saved_step = trainer.step
            if config.sample_every and trainer.step % config.sample_every == 0:
                _draw(reports, samples, trainer)
        if saved_step != trainer.step:
            _save(folder, trainer, None)
    finally:
        signal.signal(signal.SIGTERM, previous)
        if reports is not None:
            reports.close()
    return checkpoint_path(Path(config.output), trainer.step)


def _save(folder: RunFolder | None, trainer: Trainer, score: float | None) -> None:
    """Write a checkpoint, after the lines of the log that lead there; all must ask."""
    config, processes = trainer.config, trainer.processes
    processes.on_main(lambda: folder.log.sync() if folder is not None else None)
    output, keep = Path(config.output), config.keep_checkpoints
    path = save_checkpoint(output, trainer.step, trainer.state(), keep, score, processes)
    if folder is not None:
        folder.saved = path


def _open_reports(
    folder: RunFolder | None, trainer: Trainer, on_progress: OnProgress | None
) -> RunReports | None:
    if folder is None:
        return None
    return RunReports(folder.folder, trainer.config.tensorboard, trainer.step, on_progress)


def _report(reports: RunReports | None, trainer: Trainer, scalars: dict[str, float]) -> None:
    if reports is not None:
        counts = {"epoch": trainer.epoch, "images_seen": trainer.images_seen}
        reports.scalars(trainer.step, {**counts, **scalars})


def _draw(reports: RunReports | None, samples: SampleGrid | None, trainer: Trainer) -> None:
    weights = whole_tree(trainer.averaged.weights)  # of slices that all processes hold
    if reports is not None and samples is not None:
        with torch.device("meta"):
            network = trainer.blank_network()  # the trainer's own may lie in slices
        reports.pictures(trainer.step, samples.sheet(network, weights))
