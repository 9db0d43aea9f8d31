"""An open-loop client: sends at the moments it was told, however slow the answers are.

Latency runs from the moment a request was due, so a client that falls behind hides nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

from fit_serve.bench.traffic import Arrival
from fit_serve.request import SequenceRequest

Submit = Callable[[SequenceRequest], "Future[Any]"]


@dataclass(frozen=True)
class Outcome:
    """How one request ended.

    Attributes:
        latency_s: from the moment it was due.
        done_s: from the start of the run.
        error: name of its error; None if it was answered.
        result: what its future held; None after an error.
    """

    latency_s: float
    done_s: float
    error: str | None
    result: Any = None


def run_open_loop(submit: Submit, arrivals: list[Arrival]) -> list[Outcome]:
    """Send every request at its moment and wait for all answers.

    Args:
        submit: starts a request and returns its future; may raise, which counts as its answer.
        arrivals: in order of time.
    """
    outcomes: list[Outcome | None] = [None] * len(arrivals)
    left = threading.Semaphore(0)
    start = time.monotonic()

    def finish(number: int, error: BaseException | None, result: Any = None) -> None:
        now = time.monotonic() - start
        name = type(error).__name__ if error is not None else None
        outcomes[number] = Outcome(now - arrivals[number].at_s, now, name, result)
        left.release()

    def on_done(number: int, future: Future[Any]) -> None:
        error = future.exception()
        finish(number, error, None if error else future.result())

    for number, arrival in enumerate(arrivals):
        time.sleep(max(0.0, start + arrival.at_s - time.monotonic()))
        try:
            future = submit(arrival.request)
        except Exception as error:  # a refusal is an answer too
            finish(number, error)
            continue
        future.add_done_callback(partial(on_done, number))
    for _ in arrivals:
        left.acquire()
    return [outcome for outcome in outcomes if outcome is not None]
