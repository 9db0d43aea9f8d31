"""The simulation loses nobody, and its policies differ as they must."""

from types import ModuleType

import pytest

from support.benchmark_modules import load_benchmark


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    return load_benchmark("simulate_scheduler")


def test_everybody_is_done_refused_or_late(simulation: ModuleType) -> None:
    for name, batching, order in simulation.POLICIES:
        scale = 3.0 if order == "deadline" else None
        row = simulation.simulate(simulation.Case(name, batching, order, 1.2, scale, 150))
        shares = list(row.goodput.values())
        assert shares == sorted(shares)
        assert shares[-1] <= 1 - (row.refused + row.late) / 150 + 1e-9
        assert row.slowdown_p50 >= 1 - 1e-6
        assert (row.late == 0) or order == "deadline"


def test_told_deadlines_more_are_in_time_under_overload(simulation: ModuleType) -> None:
    told = simulation.simulate(simulation.Case("x", "packed", "deadline", 1.2, 3.0, 300))
    untold = simulation.simulate(simulation.Case("x", "packed", "fcfs", 1.2, None, 300))
    assert told.goodput["3.0"] > untold.goodput["3.0"]
