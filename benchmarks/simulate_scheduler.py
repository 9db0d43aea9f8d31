"""Scheduling policies on a hundred thousand requests, without a network: the steps are predicted.

Usage: `python benchmarks/simulate_scheduler.py [--requests N] [--json FILE]`. Plays Poisson traffic
"C-FiT" through the scheduler of the engine; a step takes what the cost model says. Loads are shares
of what full steps could do. A request is in time within `scale` times its own latency alone; those
refused (full queue, or a deadline that cannot be kept) and those dropped late count as missed.
Only "deadline" is told deadlines, so it is played once for each scale.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections import deque
from collections.abc import Sequence as Items
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from fit_serve.bench.report import quantile
from fit_serve.bench.traffic import make_requests
from fit_serve.engine.admission import Admission
from fit_serve.engine.batching import StepLimits
from fit_serve.engine.calibration import KNEE
from fit_serve.engine.cost_model import CostModel
from fit_serve.engine.order import Order
from fit_serve.engine.scheduler import Scheduler
from fit_serve.engine.sequence import Sequence, plan_sequence
from fit_serve.errors import ServeError

# (name of the row, batching, order)
POLICIES = (
    ("fcfs", "packed", "fcfs"),
    ("shortest-first", "packed", "shortest"),
    ("deadline", "packed", "deadline"),
    ("serial", "serial", "fcfs"),
    ("equal-shape-dynamic", "equal-shape-dynamic", "fcfs"),
    ("equal-shape-step", "equal-shape-step", "fcfs"),
    ("padded-mixed", "padded-mixed", "fcfs"),
)
LOADS = (0.3, 0.6, 0.8, 1.0, 1.2)
SCALES = (1.5, 2.0, 3.0, 5.0, 10.0)
QUEUE = 256
PIXELS_PER_TOKEN = 16

# FiTv2-XL/2 on an H200 as predicted: the roofline of matrix products at 60 % of 790 TFLOP/s above a
# floor of reading weights and launching graphs. A prediction until it is measured.
FLOOR_S, TOKENS_PER_S = 0.9e-3, 400_000.0
H200_XL2 = CostModel(
    points=tuple(
        (tokens, FLOOR_S + tokens / TOKENS_PER_S)
        for tokens in (256, 512, 1024, 2048, 4096, 8192, 16_384)
    ),
    reference_length=256,
    seconds_per_pair=1.7e-10,
)
BUDGET = H200_XL2.knee(KNEE)


@dataclass(frozen=True)
class Case:
    """One simulation; `scale` is what the deadline policy is told, None for the others."""

    policy: str
    batching: str
    order: str
    load: float
    scale: float | None
    num_requests: int
    seed: int = 0


@dataclass(frozen=True)
class Row:
    """What came of it.

    Attributes:
        goodput: per SLO scale, requests a second in time, as a share of those offered.
        slowdown_p50, slowdown_p99: latency over the latency alone, of those that were done.
        small_slowdown_p99: the same of the smallest pictures: what large ones in front cost them.
        longest_wait_s: from arrival to the first step.
        tokens_per_step: mean.
    """

    policy: str
    load: float
    scale: float | None
    num_requests: int
    refused: int
    late: int
    goodput: dict[str, float]
    slowdown_p50: float
    slowdown_p99: float
    small_slowdown_p99: float
    longest_wait_s: float
    tokens_per_step: float
    wall_s: float


def simulate(case: Case) -> Row:
    """Play one case."""
    began = time.perf_counter()
    limits = StepLimits(BUDGET, 256, 10**12)
    order = Order(case.order, patience_s=5.0)
    admission = Admission(limits, order, QUEUE, lambda: H200_XL2, lambda sequence: 0.0)
    arrivals = _arrivals(case)
    alone = {id(s): s.alone_s for _, s in arrivals}
    smallest = min(s.num_tokens for _, s in arrivals)
    scheduler, present = Scheduler(limits, case.batching, order), {}
    done: list[tuple[Sequence, float]] = []
    refused = late = steps = tokens = 0
    waits = 0.0
    now = 0.0
    while arrivals or not scheduler.is_empty():
        if scheduler.is_empty() and arrivals[0][0] > now:
            now = arrivals[0][0]
        while arrivals and arrivals[0][0] <= now:
            at, sequence = arrivals.popleft()
            admission.prepare([sequence], at)
            try:
                admission.check([sequence], list(present), now)
            except ServeError:
                refused += 1
                continue
            present[sequence] = None
            scheduler.add([sequence])
        for sequence in scheduler.remove_where(partial(_is_late, now)):
            late += 1
            del present[sequence]
        chosen = scheduler.schedule()
        if not chosen:
            continue
        for sequence in chosen:
            if sequence.started_s is None:
                sequence.started_s = now
                waits = max(waits, now - sequence.submitted_s)
        lengths = [s.num_tokens for s in chosen for _ in range(s.num_branches)]
        computed = _padded(lengths) if case.batching == "padded-mixed" else lengths
        now += H200_XL2.step_seconds(computed)
        steps, tokens = steps + 1, tokens + sum(lengths)
        for sequence in chosen:
            sequence.advance(sequence.next_turn())
        ended = [s for s in chosen if s.is_finished]
        scheduler.remove(ended)
        for sequence in ended:
            del present[sequence]
            done.append((sequence, now - sequence.submitted_s))
    slowdowns = sorted(latency / alone[id(s)] for s, latency in done)
    small = sorted(latency / alone[id(s)] for s, latency in done if s.num_tokens == smallest)
    scales = SCALES if case.scale is None else (case.scale,)
    return Row(
        policy=case.policy,
        load=case.load,
        scale=case.scale,
        num_requests=case.num_requests,
        refused=refused,
        late=late,
        goodput={
            str(scale): sum(x <= scale * (1 + 1e-9) for x in slowdowns) / case.num_requests
            for scale in scales
        },
        slowdown_p50=quantile(slowdowns, 0.5),
        slowdown_p99=quantile(slowdowns, 0.99),
        small_slowdown_p99=quantile(small, 0.99) if small else 0.0,
        longest_wait_s=waits,
        tokens_per_step=tokens / steps,
        wall_s=time.perf_counter() - began,
    )


def _is_late(now: float, sequence: Sequence) -> bool:
    return sequence.deadline_s is not None and sequence.deadline_s < now


def _padded(lengths: list[int]) -> list[int]:
    return [max(lengths)] * len(lengths)


def _arrivals(case: Case) -> deque[tuple[float, Sequence]]:
    """The same traffic for every policy: sequences and when they come."""
    requests = make_requests(
        "c-fit", case.num_requests, 1000, PIXELS_PER_TOKEN, 1.5, (0.0, 1.0), case.seed
    )
    sequences = [plan_sequence(request, PIXELS_PER_TOKEN) for request in requests]
    work = statistics.fmean(s.remaining_tokens for s in sequences)
    rate = case.load * H200_XL2.tokens_per_s(BUDGET) / work
    rng, now = random.Random(case.seed + 1), 0.0
    arrivals: deque[tuple[float, Sequence]] = deque()
    for sequence in sequences:
        step = H200_XL2.step_seconds([sequence.num_tokens] * sequence.num_branches)
        sequence.alone_s = sequence.remaining_turns * step
        if case.scale is not None:
            deadline_s = case.scale * sequence.alone_s
            sequence.request = replace(sequence.request, deadline_s=deadline_s)
        now += rng.expovariate(rate)
        arrivals.append((now, sequence))
    return arrivals


def cases(num_requests: int, loads: Items[float], scales: Items[float]) -> list[Case]:
    """All policies at these loads; the scales are what the deadline policy is told."""
    return [
        Case(name, batching, order, load, scale, num_requests)
        for load in loads
        for name, batching, order in POLICIES
        for scale in (scales if order == "deadline" else (None,))
    ]


def goodput_table(rows: list[Row], scale: float) -> str:
    """Share of requests in time, policies by loads, as Markdown."""
    lines = [
        f"| in time at SLO scale {scale:g} | " + " | ".join(f"load {x:g}" for x in LOADS) + " |",
        "| --- |" + " --- |" * len(LOADS),
    ]
    for name, _, _ in POLICIES:
        cells = []
        for load in LOADS:
            found = [
                row.goodput[str(scale)]
                for row in rows
                if row.policy == name and row.load == load and str(scale) in row.goodput
            ]
            cells.append(f"{found[0]:.1%}" if found else "-")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run all cases; tables, and a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--loads", type=float, nargs="+", default=LOADS)
    parser.add_argument("--scales", type=float, nargs="+", default=SCALES)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows: list[Row] = []
    wanted = cases(arguments.requests, arguments.loads, arguments.scales)
    with ProcessPoolExecutor(arguments.processes) as pool:
        for row in pool.map(simulate, wanted):
            rows.append(row)
            print(f"{row.policy} load {row.load} scale {row.scale}: {row.wall_s:.0f} s", flush=True)
    for scale in SCALES:
        print(f"\n{goodput_table(rows, scale)}")
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"rows": [asdict(row) for row in rows]}) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
