"""How long one call takes on this device: replays of a CUDA graph, or a loop.

On a GPU a call is captured many times into one graph, every time over buffers of its own, and
replays of it are timed with events. Launches leave no gaps; together the buffers are several times
the L2, so that what is measured is memory and not the cache of the last round; results are kept
alive through the capture for the same reason. A fill before the first event keeps the device busy
while the host queues the replays. Without a GPU a loop and the host's clock stand in.

Everything runs on one side stream, for a backward pass runs on the stream of its forward and a
capture must hold both. Use it as `with Stopwatch(device) as stopwatch:`.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

Call = Callable[[], object]
# Buffers of all calls together, over the L2.
_TIMES_L2 = 4
# More calls than this in one graph measure nothing new, for the launches themselves bound them.
MAX_CALLS = 256
# Buffers of all calls together, at most: a backward keeps several times as much besides.
_MOST_BYTES = 4e9
# Fewer, and the gap between two replays of short calls shows.
_MIN_CALLS = 16
_WARM_UP = 3
_MIN_ROUNDS = 5
_MIN_ROUND_SECONDS = 1e-3
_LEAD_BYTES = 512 * 2**20
_HOST_ROUNDS = 1


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: median and best of the rounds, and how they were taken."""

    median: float
    best: float
    method: str


class Stopwatch:
    """Times calls on one device.

    Attributes:
        device: where the calls run.
        seconds: how long one timing may go on, warm-up apart.
    """

    def __init__(self, device: torch.device | str, seconds: float = 0.2) -> None:
        self.device = torch.device(device)
        self.seconds = seconds
        self._stack = contextlib.ExitStack()
        self._stream = torch.cuda.Stream(self.device) if self.on_gpu else None

    def __enter__(self) -> Stopwatch:
        if self._stream is not None:
            self._stack.enter_context(torch.cuda.device(self.device))
            self._stack.enter_context(torch.cuda.stream(self._stream))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def on_gpu(self) -> bool:
        """Whether CUDA graphs and events are there."""
        return self.device.type == "cuda"

    def calls_for(self, bytes_per_call: float) -> int:
        """How many sets of buffers keep the L2 out of the measurement."""
        if not self.on_gpu:
            return 1
        l2 = torch.cuda.get_device_properties(self.device).L2_cache_size
        wanted = max(int(_TIMES_L2 * l2 / bytes_per_call) + 1, _MIN_CALLS)
        return min(wanted, MAX_CALLS, max(2, int(_MOST_BYTES / bytes_per_call)))

    def time(self, calls: Sequence[Call]) -> Timing:
        """Time calls of equal work over different buffers, in a graph where that is possible.

        A call that cannot be captured (it asks the host for something) is timed in a loop.
        """
        if not self.on_gpu:
            return self.time_loop(calls)
        for _ in range(_WARM_UP):
            calls[0]()
        try:
            graph, kept = self._capture(calls)
        except RuntimeError as error:
            torch.cuda.synchronize()
            timing = self.time_loop(calls)
            reason = str(error).splitlines()[0][:80]
            return Timing(timing.median, timing.best, f"loop, for capture failed: {reason}")
        median, best = self._replay_seconds(graph)
        del graph, kept
        return Timing(median / len(calls), best / len(calls), f"graph of {len(calls)}")

    def time_loop(self, calls: Sequence[Call]) -> Timing:
        """Time calls one after the other, launches included: what a network without graphs pays."""

        def each() -> None:
            for call in calls:
                call()

        if self.on_gpu:
            each()
            each()
            rounds, method = self._event_rounds(each), "loop, events"
        else:
            rounds, method = self._host_rounds(each), "loop, host's clock"
        median, best = statistics.median(rounds), min(rounds)
        return Timing(median / len(calls), best / len(calls), method)

    def _capture(self, calls: Sequence[Call]) -> tuple[torch.cuda.CUDAGraph, list[object]]:
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=self._stream):
            kept = [call() for call in calls]
        graph.replay()
        torch.cuda.synchronize()
        return graph, kept

    def _replay_seconds(self, graph: torch.cuda.CUDAGraph) -> tuple[float, float]:
        """Median and best seconds of one replay, many in a row."""
        once = min(self._event_rounds(graph.replay, rounds=2))
        replays = max(1, round(_MIN_ROUND_SECONDS / once))
        lead = torch.empty(_LEAD_BYTES, dtype=torch.uint8, device=self.device)

        def many() -> None:
            for _ in range(replays):
                graph.replay()

        rounds = self._event_rounds(many, lead=lead.zero_)
        return statistics.median(rounds) / replays, min(rounds) / replays

    def _event_rounds(
        self, run: Call, lead: Call | None = None, rounds: int | None = None
    ) -> list[float]:
        """Seconds of single rounds by device events: so many, or until the time is up."""
        taken: list[float] = []
        started = time.perf_counter()
        while len(taken) < (rounds or _MIN_ROUNDS) or (
            rounds is None and time.perf_counter() - started < self.seconds
        ):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            if lead is not None:
                lead()
            begin.record()
            run()
            end.record()
            end.synchronize()
            taken.append(begin.elapsed_time(end) / 1e3)
        return taken

    def _host_rounds(self, run: Callable[[], None]) -> list[float]:
        rounds: list[float] = []
        started = time.perf_counter()
        while len(rounds) < _HOST_ROUNDS or time.perf_counter() - started < self.seconds:
            begin = time.perf_counter()
            run()
            rounds.append(time.perf_counter() - begin)
        return rounds
