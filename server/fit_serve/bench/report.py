"""Outcomes to figures: one row per policy and load, a table for people, one line for machines."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.table import Table

from fit_serve.bench.load import Outcome


@dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
        target: "engine" or "http".
        policy: how the engine batched.
        offered_rate: requests a second sent; None for all at once.
        requests_per_s: answered, over the time from the first to the last answer due.
        mean_s, p50_s, p95_s, p99_s: latency from the due moment.
        failed: requests that ended in an error.
        tokens_per_s: real tokens over the time steps took; None behind HTTP.
        packing_efficiency: real over launched tokens; None behind HTTP.
        sequences_per_step: mean; None behind HTTP.
    """

    target: str
    policy: str
    offered_rate: float | None
    num_requests: int
    requests_per_s: float
    mean_s: float
    p50_s: float
    p95_s: float
    p99_s: float
    failed: int
    tokens_per_s: float | None = None
    packing_efficiency: float | None = None
    sequences_per_step: float | None = None


def summarise(
    target: str,
    policy: str,
    offered_rate: float | None,
    outcomes: Sequence[Outcome],
    facts: dict[str, float],
) -> Row:
    """Boil a run down to a row.

    Raises:
        ValueError: no request was answered.
    """
    good = sorted(o.latency_s for o in outcomes if o.error is None)
    if not good:
        errors = sorted({str(o.error) for o in outcomes})
        raise ValueError(f"no request of the benchmark was answered; errors: {errors}")
    busy = facts.get("busy_s")
    return Row(
        target=target,
        policy=policy,
        offered_rate=offered_rate,
        num_requests=len(outcomes),
        requests_per_s=len(good) / max(o.done_s for o in outcomes),
        mean_s=statistics.fmean(good),
        p50_s=quantile(good, 0.50),
        p95_s=quantile(good, 0.95),
        p99_s=quantile(good, 0.99),
        failed=len(outcomes) - len(good),
        tokens_per_s=facts["tokens"] / busy if busy else None,
        packing_efficiency=facts.get("packing_efficiency"),
        sequences_per_step=facts.get("sequences_per_step"),
    )


def quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the ordered values do not exceed."""
    position = max(0, -(-int(share * len(ordered) * 1_000_000) // 1_000_000) - 1)
    return ordered[min(position, len(ordered) - 1)]


def as_table(rows: Sequence[Row]) -> Table:
    """For people."""
    table = Table(
        "policy",
        "offered/s",
        "answered/s",
        "mean s",
        "p50 s",
        "p95 s",
        "p99 s",
        "failed",
        "tokens/s",
        "packing",
        "seqs/step",
    )
    for r in rows:
        offered = "all at once" if r.offered_rate is None else f"{r.offered_rate:.2f}"
        latencies = (f"{v:.2f}" for v in (r.mean_s, r.p50_s, r.p95_s, r.p99_s))
        rest = (
            "-" if v is None else f"{v:.{d}f}"
            for v, d in ((r.tokens_per_s, 0), (r.packing_efficiency, 3), (r.sequences_per_step, 1))
        )
        table.add_row(
            r.policy, offered, f"{r.requests_per_s:.2f}", *latencies, str(r.failed), *rest
        )
    return table


def as_json(rows: Sequence[Row], facts: dict[str, object]) -> str:
    """For machines: one line."""
    return json.dumps({**facts, "rows": [asdict(row) for row in rows]})
