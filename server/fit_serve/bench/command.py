"""What `fit-serve bench` does: the same traffic against each policy, in one run.

First every policy gets all requests at once: that is its capacity. Then all get Poisson arrivals at
a share of the serial capacity, and the others `speedup` times that too, so that "more requests at
no higher latency" can be read off the table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from fit_kernels import use_backend
from fit_models.bundle import Bundle, load_bundle
from fit_models.host_memory import bound_product_caches, keep_freed_memory
from fit_models.random_bundle import is_random, random_bundle
from fit_serve.bench.load import run_open_loop
from fit_serve.bench.report import Row, as_json, summarise
from fit_serve.bench.target import EngineTarget, HttpTarget
from fit_serve.bench.traffic import make_requests, poisson_arrivals
from fit_serve.engine import EngineConfig
from fit_serve.engine.calibration import device_name
from fit_serve.request import SequenceRequest


@dataclass(frozen=True)
class BenchConfig:
    """A benchmark.

    Attributes:
        model, device, dtype: as for `fit-serve serve`.
        traffic: a key of `fit_serve.bench.traffic.TRAFFIC`.
        policies: of `fit_serve.engine.config.BATCHING`.
        num_requests: of every run.
        load: share of the serial capacity that is offered with Poisson arrivals; 0 leaves that out.
        speedup: what the other policies get on top of it.
        guidance_scale: of every request; None takes the model's.
        url: a running server to measure instead of engines; then `rate` is what it is offered.
        rate: requests a second for `url`; None sends all at once.
        num_threads: torch threads; None leaves torch's choice.
        max_num_seqs: sequences of one step.
        max_num_batched_tokens: tokens of one step; None takes the engine's own choice.
        seed: of requests and arrivals.
        json_file: where the line for machines goes too.
    """

    model: str = "embedded"
    device: str = "auto"
    dtype: str = "auto"
    traffic: str = "c-fit-small"
    policies: tuple[str, ...] = ("serial", "equal-shape-step", "packed")
    num_requests: int = 60
    load: float = 0.8
    speedup: float = 1.5
    guidance_scale: float | None = None
    url: str | None = None
    rate: float | None = None
    num_threads: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int | None = None
    seed: int = 0
    json_file: Path | None = None


def run_bench(config: BenchConfig, say: Callable[[str], None]) -> tuple[list[Row], str]:
    """Measure; returns the rows and the JSON line.

    Raises:
        ValueError: model, traffic or policy is unknown, or nothing was answered.
    """
    bundle = open_bundle(config.model, config.device, config.dtype)
    requests = _requests(bundle, config)
    rows = (
        _measure_url(config, requests, say)
        if config.url
        else _measure(config, bundle, requests, say)
    )
    line = as_json(rows, facts_of(bundle, config.traffic, config.seed))
    if config.json_file is not None:
        config.json_file.write_text(line + "\n", encoding="utf-8")
    return rows, line


def open_bundle(model: str, device: str, dtype: str) -> Bundle:
    """Load a bundle, or make one of random weights ("random:FiTv2-B/2"), with its operators.

    Raises:
        ValueError: there is none.
    """
    bound_product_caches()
    keep_freed_memory()
    load = random_bundle if is_random(model) else load_bundle
    bundle = load(model, device, dtype)
    use_backend("auto", bundle.device)
    return bundle


def facts_of(bundle: Bundle, traffic: str, seed: int) -> dict[str, object]:
    """What a figure is worth nothing without."""
    return {
        "traffic": traffic,
        "model": bundle.name,
        "device": device_name(bundle.device),
        "dtype": str(bundle.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "seed": seed,
    }


def _requests(bundle: Bundle, config: BenchConfig) -> list[SequenceRequest]:
    defaults = bundle.defaults
    scale = defaults.guidance_scale if config.guidance_scale is None else config.guidance_scale
    return make_requests(
        config.traffic,
        config.num_requests,
        len(bundle.class_names),
        bundle.pixels_per_token,
        scale,
        defaults.guidance_interval,
        config.seed,
        defaults.sampler,
    )


def _measure(
    config: BenchConfig, bundle: Bundle, requests: list[SequenceRequest], say: Callable[[str], None]
) -> list[Row]:
    rows = [_run_engine(config, bundle, policy, requests, None, say) for policy in config.policies]
    serial = next((row for row in rows if row.policy == "serial"), None)
    if serial is None or not config.load:
        return rows
    base = config.load * serial.requests_per_s
    rows += [_run_engine(config, bundle, p, requests, base, say) for p in config.policies]
    faster = [p for p in config.policies if p != "serial"]
    rows += [_run_engine(config, bundle, p, requests, config.speedup * base, say) for p in faster]
    return rows


def _run_engine(
    config: BenchConfig,
    bundle: Bundle,
    policy: str,
    requests: list[SequenceRequest],
    rate: float | None,
    say: Callable[[str], None],
) -> Row:
    say(f"{policy}: {len(requests)} requests, {'all at once' if rate is None else f'{rate:.2f}/s'}")
    engine = EngineConfig(
        batching=policy,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_queued_requests=len(requests) + 1,
        num_threads=config.num_threads,
    )
    with EngineTarget(bundle, engine) as target:
        outcomes = run_open_loop(target.submit, poisson_arrivals(requests, rate, config.seed))
        return summarise("engine", policy, rate, outcomes, target.facts())


def _measure_url(
    config: BenchConfig, requests: list[SequenceRequest], say: Callable[[str], None]
) -> list[Row]:
    assert config.url is not None
    say(f"{config.url}: {len(requests)} requests")
    with HttpTarget(config.url) as target:
        arrivals = poisson_arrivals(requests, config.rate, config.seed)
        outcomes = run_open_loop(target.submit, arrivals)
        return [summarise("http", "server", config.rate, outcomes, target.facts())]
