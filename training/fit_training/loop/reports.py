"""What a run tells of itself while it trains: `log.jsonl`, TensorBoard, pictures.

Knows files and steps. Knows nothing of networks, losses or what a scalar means.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from PIL import Image

from fit_training.loop.run_log import RunLog

TENSORBOARD_FOLDER = "tensorboard"
SAMPLES_FOLDER = "samples"
OnRow = Callable[[dict[str, Any]], None]


class RunReports:
    """Appends to a run's log; use it as a context manager, or `close` it.

    A row of `log.jsonl` is `{"step": ..., "time": ..., name: value, ...}`, time in seconds since
    1970. The same values, but for step and time, are TensorBoard scalars in
    `FOLDER/tensorboard`; pictures are `FOLDER/samples/step-000400.png` and TensorBoard images.
    """

    def __init__(
        self,
        folder: Path,
        tensorboard: bool,
        resumed_at: int = 0,
        on_row: OnRow | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Open the reports of the run in `folder`, which exists.

        Args:
            folder: of the run.
            tensorboard: whether to write for TensorBoard beside the log.
            resumed_at: step of the checkpoint the run goes on from; what TensorBoard holds of
                later steps, by a run that was cut off, is hidden.
            on_row: told every row.
            clock: seconds since 1970.

        Raises:
            ValueError: TensorBoard is asked for and not installed.
        """
        self._folder = folder
        self._log = RunLog(folder)
        self._on_row = on_row
        self._clock = clock
        self._writer = _summary_writer(folder, resumed_at) if tensorboard else None

    def scalars(self, step: int, values: Mapping[str, float]) -> dict[str, Any]:
        """Write one row and return it."""
        row = {"step": step, "time": self._clock(), **values}
        self._log.append(row)
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
        if self._on_row is not None:
            self._on_row(row)
        return row

    def pictures(self, step: int, grid: Image.Image) -> Path:
        """Write one image of pictures and return its path."""
        folder = self._folder / SAMPLES_FOLDER
        folder.mkdir(exist_ok=True)
        path = folder / f"step-{step:06d}.png"
        grid.save(path)
        if self._writer is not None:
            pixels = np.asarray(grid.convert("RGB"))
            self._writer.add_image(SAMPLES_FOLDER, pixels, step, dataformats="HWC")
        return path

    def close(self) -> None:
        """Write what TensorBoard still holds back."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __enter__(self) -> Self:
        """Return the reports themselves."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close them."""
        self.close()


def _summary_writer(folder: Path, resumed_at: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(
            "tensorboard is true but not installed; install fit-serve[train] or set it to false"
        ) from error
    purge_step = resumed_at + 1 if resumed_at else None
    return SummaryWriter(str(folder / TENSORBOARD_FOLDER), purge_step=purge_step)
