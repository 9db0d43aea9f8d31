"""The ladder: the same requests, weights and machine under one policy after another.

The rungs are what other servers do, restricted within our own engine, then ours, then ours with
less work. Every rung is given all requests at once (its capacity) and then the same Poisson
arrivals, at a share of the capacity of "packed".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy

from fit_models.bundle import Bundle
from fit_serve.bench.load import Outcome, run_open_loop
from fit_serve.bench.picture_distance import mean_psnr_db
from fit_serve.bench.report import quantile
from fit_serve.bench.target import EngineTarget
from fit_serve.bench.traffic import make_requests, poisson_arrivals
from fit_serve.engine import EngineConfig
from fit_serve.quality import QUALITIES
from fit_serve.request import SequenceRequest

BASE = "packed"
Pictures = list[numpy.ndarray]
FeatureDistance = Callable[[Pictures, Pictures], float]


@dataclass(frozen=True)
class Rung:
    """One policy.

    Attributes:
        policy: its name in the table.
        batching: of `EngineConfig`.
        is_fast: whether the network runs as CUDA graphs, on a CPU with compiled blocks.
        quality: of the requests.
        is_interval: whether requests are guided in the interval of the fast preset only.
        is_told: whether arriving requests say their deadline, and it decides who runs first.
    """

    policy: str
    batching: str = "packed"
    is_fast: bool = False
    quality: str = "exact"
    is_interval: bool = False
    is_told: bool = False


RUNGS = (
    Rung("serial", "serial"),
    Rung("equal-shape-dynamic", "equal-shape-dynamic"),
    Rung("equal-shape-step", "equal-shape-step"),
    Rung("padded-mixed", "padded-mixed"),
    Rung(BASE),
    Rung("packed+deadline", is_told=True),
    Rung("packed+graphs", is_fast=True),
    Rung("packed+interval", is_interval=True),
    Rung("packed+cache", quality="fast", is_interval=True),
)


@dataclass(frozen=True)
class LadderConfig:
    """A run of the ladder.

    Attributes:
        traffic: a key of `TRAFFIC`.
        num_requests: of each of the two runs of a rung.
        load: arrivals, as a share of what "packed" answers at capacity.
        slo_scale: a request is in time within this many times its own latency, alone, exact.
        guidance_scale: of every request; None takes the model's.
        num_threads, max_num_seqs, max_num_batched_tokens: of `EngineConfig`.
        policies: rungs to climb; "packed" always is.
        seed: of requests and arrivals.
    """

    traffic: str = "c-fit-small"
    num_requests: int = 40
    load: float = 0.8
    slo_scale: float = 3.0
    guidance_scale: float | None = None
    num_threads: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int | None = None
    policies: tuple[str, ...] = tuple(rung.policy for rung in RUNGS)
    seed: int = 0


@dataclass(frozen=True)
class LadderRow:
    """One rung; see docs/benchmarks.md.

    Attributes:
        policy: its name.
        requests_per_s: answered when all came at once.
        goodput: requests a second in time, at the offered load.
        in_time: share of the requests that were.
        p50_s, p95_s, p99_s: latency at the offered load.
        efficiency: real over launched tokens.
        sequences_per_step: mean at the offered load.
        psnr_db: mean over pictures to those of "packed"; 100 stands for equal.
        feature_distance: mean to those of "packed"; None if no network was given.
        failed: requests without an answer, of both runs.
    """

    policy: str
    requests_per_s: float
    goodput: float
    in_time: float
    p50_s: float
    p95_s: float
    p99_s: float
    efficiency: float
    sequences_per_step: float
    psnr_db: float
    feature_distance: float | None
    failed: int


@dataclass(frozen=True)
class _Climb:
    """What came of one rung."""

    rung: Rung
    at_once: list[Outcome]
    facts: Mapping[str, float]
    arriving: list[Outcome]
    facts_arriving: Mapping[str, float]


def run_ladder(
    bundle: Bundle,
    config: LadderConfig,
    say: Callable[[str], None],
    feature_distance: FeatureDistance | None = None,
) -> tuple[list[LadderRow], float]:
    """Climb all rungs; gives their rows and the rate that was offered.

    Raises:
        ValueError: a policy or the traffic is unknown, or a rung answered nothing.
    """
    known = {rung.policy: rung for rung in RUNGS}
    if unknown := [policy for policy in config.policies if policy not in known]:
        raise ValueError(f"policy {unknown[0]!r} is unknown; known: {', '.join(known)}")
    requests = _requests(bundle, config)
    say(f"{BASE}, {len(requests)} requests at once: its capacity")
    capacity = _run(bundle, config, known[BASE], requests, None)
    rate = config.load * _per_second(capacity[0])
    say(f"every kind of request alone; then each rung gets {rate:.2f} requests a second")
    alone = _alone(bundle, config, requests)
    limits = [config.slo_scale * alone[_kind(request)] for request in requests]
    climbs = []
    for policy in dict.fromkeys((*config.policies, BASE)):
        say(policy)
        rung = known[policy]
        at_once = capacity if policy == BASE else _run(bundle, config, rung, requests, None)
        arriving = _run(bundle, config, rung, requests, rate, limits)
        climbs.append(_Climb(rung, *at_once, *arriving))
    exact = _pictures(next(c for c in climbs if c.rung.policy == BASE).at_once)
    rows = [_row(c, limits, exact, feature_distance) for c in climbs]
    order = [rung.policy for rung in RUNGS]
    return sorted(rows, key=lambda row: order.index(row.policy)), rate


def _requests(bundle: Bundle, config: LadderConfig) -> list[SequenceRequest]:
    scale = config.guidance_scale
    return make_requests(
        config.traffic,
        config.num_requests,
        len(bundle.class_names),
        bundle.pixels_per_token,
        bundle.defaults.guidance_scale if scale is None else scale,
        bundle.defaults.guidance_interval,
        config.seed,
        bundle.defaults.sampler,
    )


def _run(
    bundle: Bundle,
    config: LadderConfig,
    rung: Rung,
    requests: list[SequenceRequest],
    rate: float | None,
    limits: list[float] | None = None,
) -> tuple[list[Outcome], dict[str, float]]:
    """All requests through an engine of their own, which may be told their limits in seconds."""
    fast = "graphs" if bundle.device.type == "cuda" else "compile"
    engine = EngineConfig(
        batching=rung.batching,
        execution=fast if rung.is_fast else "eager",
        policy="deadline" if rung.is_told else "fcfs",
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_queued_requests=len(requests) + 1,
        num_threads=config.num_threads,
        calibration="stored",
    )
    asked = [_asked(request, rung) for request in requests]
    if rung.is_told and limits is not None:
        asked = [replace(r, deadline_s=limit) for r, limit in zip(asked, limits, strict=True)]
    with EngineTarget(bundle, engine) as target:
        if rung.is_fast and rate is None:  # a compiler begins anew for shapes it has not seen
            run_open_loop(target.submit, poisson_arrivals(asked, None, config.seed))
        outcomes = run_open_loop(target.submit, poisson_arrivals(asked, rate, config.seed))
        return outcomes, target.facts()


def _asked(request: SequenceRequest, rung: Rung) -> SequenceRequest:
    low, high = request.guidance_interval
    if rung.is_interval:
        low = max(low, QUALITIES["fast"].lowest_guided_sigma)
    return replace(request, quality=rung.quality, guidance_interval=(low, high))


def _alone(
    bundle: Bundle, config: LadderConfig, requests: list[SequenceRequest]
) -> dict[tuple[int, int], float]:
    """Latency of each kind of request, by (tokens, steps), exact, on an idle engine."""
    kinds = {_kind(request): request for request in requests}
    engine = EngineConfig(num_threads=config.num_threads, calibration="stored")
    seconds: dict[tuple[int, int], float] = {}
    with EngineTarget(bundle, engine) as target:
        for _ in range(2):  # the first of a kind makes its tables
            for kind, request in kinds.items():
                (outcome,) = run_open_loop(target.submit, poisson_arrivals([request], None, 0))
                seconds[kind] = min(seconds.get(kind, outcome.latency_s), outcome.latency_s)
    return seconds


def _kind(request: SequenceRequest) -> tuple[int, int]:
    return request.height * request.width, request.num_inference_steps


def _per_second(outcomes: list[Outcome]) -> float:
    good = [outcome for outcome in outcomes if outcome.error is None]
    if not good:
        errors = sorted({str(outcome.error) for outcome in outcomes})
        raise ValueError(f"no request of the ladder was answered; errors: {errors}")
    return len(good) / max(outcome.done_s for outcome in outcomes)


def _pictures(outcomes: list[Outcome]) -> list[numpy.ndarray | None]:
    return [None if o.result is None else o.result.pixels for o in outcomes]


def _row(
    climb: _Climb,
    limits: list[float],
    exact: list[numpy.ndarray | None],
    feature_distance: FeatureDistance | None,
) -> LadderRow:
    arriving = climb.arriving
    latencies = sorted(o.latency_s for o in arriving if o.error is None)
    if not latencies:
        raise ValueError(f"{climb.rung.policy}: no request was answered at the offered load")
    in_time = sum(
        o.error is None and o.latency_s <= limit for o, limit in zip(arriving, limits, strict=True)
    )
    pairs = [
        (own, other)
        for own, other in zip(_pictures(climb.at_once), exact, strict=True)
        if own is not None and other is not None
    ]
    own, other = [a for a, _ in pairs], [b for _, b in pairs]
    return LadderRow(
        policy=climb.rung.policy,
        requests_per_s=_per_second(climb.at_once),
        goodput=in_time / max(o.done_s for o in arriving),
        in_time=in_time / len(arriving),
        p50_s=quantile(latencies, 0.50),
        p95_s=quantile(latencies, 0.95),
        p99_s=quantile(latencies, 0.99),
        efficiency=climb.facts["packing_efficiency"],
        sequences_per_step=climb.facts_arriving["sequences_per_step"],
        psnr_db=mean_psnr_db(own, other),
        feature_distance=None if feature_distance is None else feature_distance(own, other),
        failed=sum(o.error is not None for o in (*climb.at_once, *arriving)),
    )
