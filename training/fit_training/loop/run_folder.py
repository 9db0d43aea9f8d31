"""The output folder of a run: its log, its checkpoints, and which of them was the last.

Knows files and that only one process writes to them. Knows nothing of how a network is trained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fit_training.loop.checkpoints import (
    checkpoint_path,
    checkpoint_paths,
    load_newest_checkpoint,
    remove_unfinished,
)
from fit_training.loop.processes import Processes
from fit_training.loop.run_log import RunLog


class RunFolder:
    """Opened by the one process that writes to it, which first mends what a killed one left.

    Args:
        folder: made if it is not there.
        keep: newest checkpoints that stay.
        resume: whether checkpoints may be there already.

    Raises:
        ValueError: there are checkpoints, and `resume` is False.
    """

    def __init__(self, folder: Path, keep: int, resume: bool) -> None:
        there = [path.name for path in checkpoint_paths(folder)]
        if there and not resume:
            raise ValueError(
                f"output: {folder} holds {', '.join(there)}; without resuming, a run needs a "
                "folder that has no checkpoints"
            )
        folder.mkdir(parents=True, exist_ok=True)
        remove_unfinished(folder)
        self.folder = folder
        self.keep = keep
        self.log = RunLog(folder)
        self.saved: Path | None = None
        """The checkpoint that was read or written last."""

    def newest_state(self, processes: Processes) -> dict[str, Any] | None:
        """Read the newest good checkpoint; None if there is none.

        Raises:
            ValueError: there are checkpoints, but all are damaged.
        """
        state = load_newest_checkpoint(self.folder, processes)
        if state is not None:
            self.saved = checkpoint_path(self.folder, state["progress"][0])
        return state

    def check_finite(self, step: int, scalars: Mapping[str, float]) -> None:
        """Stop a run that is lost before it is saved.

        Raises:
            ValueError: one of the scalars of this step is NaN or infinite.
        """
        lost = {name: value for name, value in scalars.items() if not math.isfinite(value)}
        if lost:
            kept = self.saved.name if self.saved is not None else "no checkpoint"
            said = ", ".join(f"{name} is {value}" for name, value in lost.items())
            raise ValueError(
                f"step {step}: {said}; {self.folder} keeps {kept}. Go on from there "
                "with a lower learning_rate or gradient_clip"
            )
