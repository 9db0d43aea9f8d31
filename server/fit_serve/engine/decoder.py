"""Finished latents to pixels, beside the step loop: its own threads, equal sizes together.

Knows latents and pixels; not sequences' plans, queues of requests or encoders of files.

Dimension key: N tokens of a sequence, K token channels, H and W in pixels.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from fit_models.autoencoder import Autoencoder
from fit_models.patches import unpatchify
from fit_serve.engine.sequence import Sequence

_log = logging.getLogger(__name__)

# Pixels decoded in one call: enough to fill the device, not so many that the first must wait long.
_MAX_PIXELS = 4 * 512 * 512

OnDecoded = Callable[[Sequence, numpy.ndarray | Exception, float], None]


@dataclass(frozen=True)
class _Job:
    sequence: Sequence
    tokens: Tensor
    ready: torch.cuda.Event | None


class Decoder:
    """Threads that decode what is put in; every job ends in exactly one call of `on_decoded`.

    `on_decoded(sequence, pixels or error, seconds)` is called from a decoder thread; pixels are
    uint8 [H, W, 3]. An error it raises is logged and stops nothing.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        patch_size: int,
        num_workers: int,
        on_decoded: OnDecoded,
        largest_group: int | None = None,
    ) -> None:
        """`largest_group` bounds the pictures of one call; None leaves it to their pixels."""
        self._largest_group = largest_group
        self._autoencoder = autoencoder
        self._patch_size = patch_size
        self._on_decoded = on_decoded
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"decoder-{i}", daemon=True)
            for i in range(num_workers)
        ]
        for thread in self._threads:
            thread.start()

    def put(
        self, sequence: Sequence, tokens: Tensor, ready: torch.cuda.Event | None = None
    ) -> None:
        """Queue the tokens [N, K] of a finished sequence; on a GPU they hold after `ready`."""
        with self._changed:
            self._jobs.append(_Job(sequence, tokens, ready))
            self._changed.notify()

    def is_alive(self) -> bool:
        """Whether every thread still runs."""
        return all(thread.is_alive() for thread in self._threads)

    def close(self, timeout_s: float) -> None:
        """Decode what is queued, then end the threads; wait at most this long for each."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout_s)

    def _work(self) -> None:
        """On a GPU, in a stream of its own, so that steps do not wait for pictures."""
        if torch.cuda.is_available():
            with torch.cuda.stream(torch.cuda.Stream()):
                self._serve()
        else:
            self._serve()

    def _serve(self) -> None:
        while jobs := self._next_jobs():
            started = time.perf_counter()
            results = self._results(jobs)
            seconds = time.perf_counter() - started
            for job, result in zip(jobs, results, strict=True):
                try:
                    self._on_decoded(job.sequence, result, seconds)
                except Exception:
                    _log.exception("the answer of %s was lost", job.sequence.sequence_id)

    def _results(self, jobs: list[_Job]) -> list[numpy.ndarray | Exception]:
        """Pixels or the error of each job; when a group fails, its members are tried alone."""
        try:
            return list(self._decode(jobs))
        except Exception as error:  # must reach the request, not end the thread
            if len(jobs) == 1:
                return [error]
            return [self._results([job])[0] for job in jobs]

    def _next_jobs(self) -> list[_Job]:
        """Wait for work; take the oldest job and those of its size, up to a number of pixels."""
        with self._changed:
            while not self._jobs and not self._is_closed:
                self._changed.wait()
            if not self._jobs:
                return []
            grid = self._jobs[0].sequence.grid
            request = self._jobs[0].sequence.request
            room = max(1, _MAX_PIXELS // (request.height * request.width))
            if self._largest_group is not None:
                room = min(room, self._largest_group)
            taken = [job for job in self._jobs if job.sequence.grid == grid][:room]
            chosen = {id(job) for job in taken}
            self._jobs = deque(job for job in self._jobs if id(job) not in chosen)
            return taken

    @torch.inference_mode()
    def _decode(self, jobs: list[_Job]) -> list[numpy.ndarray]:
        rows, columns = jobs[0].sequence.grid
        for job in jobs:
            if job.ready is not None:
                stream = torch.cuda.current_stream()
                stream.wait_event(job.ready)
                job.tokens.record_stream(stream)
        tokens_BNK = torch.stack([job.tokens for job in jobs])
        if not bool(torch.isfinite(tokens_BNK).all()):
            raise FloatingPointError("a latent is not finite")
        latents = unpatchify(tokens_BNK, rows, columns, self._patch_size)
        pixels_B3HW = self._autoencoder.decode(latents)
        return list(pixels_B3HW.permute(0, 2, 3, 1).contiguous().cpu().numpy())
