"""The simulation loses nobody, and its policies differ as they must."""

import importlib.util
import sys
from types import ModuleType

import pytest

from support.repository import ROOT


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    path = ROOT / "benchmarks" / "simulate_scheduler.py"
    spec = importlib.util.spec_from_file_location("simulate_scheduler", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


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
