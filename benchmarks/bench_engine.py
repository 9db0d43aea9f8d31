"""What the engine adds to the network: the share of its time that is not the network's.

Usage: `python benchmarks/bench_engine.py [--model MODEL] [--requests N] [--rounds N]`. Mixed
traffic all at once, with the plain loop, the overlapped one, and the batch-invariant mode; the ways
take turns, and the fastest round of each counts. "outside" is the time of the loop without the
network's calls, as a share of all: describing, gathering, guidance, the update, telling. Decoding,
which runs beside it and shares the cores, is left out.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch

from fit_models.bundle import Bundle
from fit_models.device import use_fast_float32_matmul
from fit_serve.bench.command import open_bundle
from fit_serve.bench.traffic import make_requests
from fit_serve.engine.batching import StepLimits
from fit_serve.engine.budget import step_limits
from fit_serve.engine.config import EngineConfig
from fit_serve.engine.engine import Engine
from fit_serve.engine.runner import Runner
from fit_serve.engine.scheduler import Scheduler
from fit_serve.engine.sequence import Sequence, plan_sequence
from fit_serve.engine.step_cache import StepCache
from fit_serve.engine.step_clock import StepClock
from fit_serve.engine.step_executor import ThreadExecutor

WAYS = {
    "plain": EngineConfig(),
    "overlapped": EngineConfig(overlap=True),
    "batch-invariant": EngineConfig(batch_invariant=True),
}


class Watched:
    """Calls of the network, timed; on a GPU by events."""

    def __init__(self, denoise: Callable[..., Any], device: torch.device) -> None:
        self._denoise, self._device = denoise, device
        self._clocks: list[StepClock] = []

    def __call__(self, *step: Any) -> Any:
        """Call it."""
        clock = StepClock(self._device)
        result = self._denoise(*step)
        clock.stop(self._device)
        self._clocks.append(clock)
        return result

    def seconds(self) -> float:
        """Of all calls."""
        return sum(clock.wait() for clock in self._clocks)


class Ends:
    """A listener that only counts."""

    def __init__(self) -> None:
        self.steps = self.done = 0

    def on_step(self, report: object, seconds: float) -> None:
        """Count a step."""
        self.steps += 1

    def on_progress(self, sequence: Sequence, position: int) -> None:
        """Nothing to do."""

    def on_denoised(self, sequence: Sequence, tokens: object, clock: object) -> None:
        """Count a picture."""
        self.done += 1

    def on_failed(self, sequence: Sequence, error: Exception) -> None:
        """Fail too."""
        raise error


def run(
    bundle: Bundle, config: EngineConfig, traffic: str, num_requests: int, limits: StepLimits
) -> dict[str, float]:
    """All requests through one engine."""
    runner, ends = Runner(bundle, config), Ends()
    runner.execution.warm_up(runner.rope)
    watched = Watched(runner.execution.denoise, bundle.device)
    setattr(runner.execution, "denoise", watched)  # noqa: B010, a method for the type checker
    executor = ThreadExecutor(lambda: None) if config.overlap else None
    engine = Engine(Scheduler(limits), runner, ends, executor=executor)
    defaults = bundle.defaults
    requests = make_requests(
        traffic,
        num_requests,
        len(bundle.class_names),
        bundle.pixels_per_token,
        defaults.guidance_scale,
        defaults.guidance_interval,
        0,
    )
    engine.put([plan_sequence(r, bundle.pixels_per_token, StepCache()) for r in requests])
    began = time.perf_counter()
    while ends.done < num_requests:
        engine.step()
    wall = time.perf_counter() - began
    if executor is not None:
        executor.close()
    network = watched.seconds()
    return {
        "wall_s": wall,
        "network_s": network,
        "steps": ends.steps,
        "ms_a_step": 1e3 * wall / ends.steps,
        "outside": 1.0 - network / wall,
    }


def main() -> None:
    """Print a table and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--traffic", default="c-fit-small")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    use_fast_float32_matmul()
    bundle = open_bundle(arguments.model, arguments.device, arguments.dtype)
    best: dict[str, dict[str, float]] = {}
    for _ in range(arguments.rounds):
        for way, config in WAYS.items():
            limits = step_limits(bundle, config, None)
            found = run(bundle, config, arguments.traffic, arguments.requests, limits)
            if way not in best or found["wall_s"] < best[way]["wall_s"]:
                best[way] = found
    print(f"{bundle.name}, {bundle.dtype}, {bundle.device}, {torch.get_num_threads()} threads")
    for way, found in best.items():
        figures = "  ".join(f"{name} {value:8.3f}" for name, value in found.items())
        print(f"{way:<16} {figures}")
    print(json.dumps({"model": bundle.name, "dtype": str(bundle.dtype), "ways": best}))


if __name__ == "__main__":
    main()
