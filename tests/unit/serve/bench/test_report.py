"""Figures of a run: nothing answered is nothing to report; quantiles are values that occurred."""

from __future__ import annotations

import json
from concurrent.futures import Future
from typing import Any

import pytest

from fit_serve.bench.load import Outcome, run_open_loop
from fit_serve.bench.report import as_json, as_table, quantile, summarise
from fit_serve.bench.traffic import make_requests, poisson_arrivals
from fit_serve.request import SequenceRequest
from support.fake_engine import FakeEngine


def test_quantiles_are_values_that_occurred() -> None:
    values = [float(v) for v in range(1, 101)]
    assert [quantile(values, q) for q in (0.5, 0.95, 0.99, 1.0)] == [50.0, 95.0, 99.0, 100.0]
    assert quantile([7.0], 0.5) == 7.0


def test_a_row_counts_answers_and_failures() -> None:
    outcomes = [Outcome(1.0, 1.0, None), Outcome(3.0, 4.0, None), Outcome(0.1, 0.2, "Overloaded")]
    facts = {"busy_s": 2.0, "tokens": 100.0, "packing_efficiency": 0.9, "sequences_per_step": 3.0}
    row = summarise("engine", "packed", None, outcomes, facts)
    assert (row.num_requests, row.failed, row.requests_per_s) == (3, 1, 0.5)
    assert (row.mean_s, row.tokens_per_s, row.packing_efficiency) == (2.0, 50.0, 0.9)
    assert json.loads(as_json([row], {"device": "cpu"}))["rows"][0]["p95_s"] == 3.0
    assert as_table([row]).row_count == 1


def test_a_run_without_answers_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"errors: \['Overloaded'\]"):
        summarise("engine", "packed", 1.0, [Outcome(0.1, 0.2, "Overloaded")], {})


def test_every_request_has_exactly_one_outcome() -> None:
    requests = make_requests("c-fit-small", 12, 6, 16, 2.0, (0.0, 1.0), 0)
    engine = FakeEngine()
    arrivals = poisson_arrivals(requests, 1000.0, 0)

    def submit(request: SequenceRequest) -> Future[Any]:
        if request.sequence_id == "bench-3":
            raise RuntimeError("refused")
        return engine.submit([request])[0]

    outcomes = run_open_loop(submit, arrivals)
    assert [o.error for o in outcomes].count(None) == 11
    assert outcomes[3].error == "RuntimeError"
    assert all(o.latency_s >= 0 for o in outcomes)
