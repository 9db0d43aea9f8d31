"""How long a step took on its device, and when it was done.

On a CPU work is done when the call returns. On a GPU the call returns at once; events in the stream
tell, and waiting for them is the loop's only wait.
"""

from __future__ import annotations

import time

import torch


class StepClock:
    """Starts when made.

    Attributes:
        done: the event after the last kernel; None on a CPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._started_s = time.perf_counter()
        self._seconds: float | None = None
        self.done: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._began = torch.cuda.Event(enable_timing=True)
            self._began.record()

    def stop(self, device: torch.device) -> None:
        """Mark the end, behind everything launched so far."""
        if device.type == "cuda":
            self.done = torch.cuda.Event(enable_timing=True)
            self.done.record()
        else:
            self._seconds = time.perf_counter() - self._started_s

    def wait(self) -> float:
        """Return the step's seconds as soon as it is done."""
        if self.done is not None and self._seconds is None:
            self.done.synchronize()
            self._seconds = self._began.elapsed_time(self.done) / 1e3
        assert self._seconds is not None, "stop() comes first"
        return self._seconds
