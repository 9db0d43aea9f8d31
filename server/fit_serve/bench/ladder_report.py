"""The ladder's rows as a table for people and a line for machines."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from rich.table import Table

from fit_serve.bench.ladder import LadderRow


def ladder_table(rows: Sequence[LadderRow]) -> Table:
    """For people."""
    table = Table(
        "policy",
        "requests/s",
        "goodput/s",
        "in time",
        "p50 s",
        "p95 s",
        "p99 s",
        "packing",
        "seqs/step",
        "PSNR dB",
        "features",
        "failed",
    )
    for row in rows:
        distance = "-" if row.feature_distance is None else f"{row.feature_distance:.3f}"
        table.add_row(
            row.policy,
            f"{row.requests_per_s:.2f}",
            f"{row.goodput:.2f}",
            f"{row.in_time:.0%}",
            *(f"{value:.2f}" for value in (row.p50_s, row.p95_s, row.p99_s)),
            f"{row.efficiency:.3f}",
            f"{row.sequences_per_step:.1f}",
            f"{row.psnr_db:.1f}",
            distance,
            str(row.failed),
        )
    return table


def ladder_json(rows: Sequence[LadderRow], facts: Mapping[str, object]) -> str:
    """For machines: one line."""
    return json.dumps({**facts, "rows": [asdict(row) for row in rows]})
