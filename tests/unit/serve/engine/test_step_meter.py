"""What is counted of the steps reaches the metrics, each look-up once."""

import pytest
from prometheus_client import CollectorRegistry

from fit_models.bundle import Bundle
from fit_serve.engine.config import EngineConfig
from fit_serve.engine.runner import Runner, StepReport
from fit_serve.engine.step_meter import StepMeter
from fit_serve.telemetry import Telemetry
from support.sequences import sequence_of


def test_speed_follows_the_steps(bundle: Bundle) -> None:
    meter = StepMeter(Runner(bundle, EngineConfig()), None)
    assert meter.tokens_per_s == 0.0
    meter.count(StepReport(100, 128, 1, 1), 0.5)
    assert meter.tokens_per_s == pytest.approx(200.0)
    for _ in range(100):
        meter.count(StepReport(100, 128, 1, 1), 0.25)
    assert meter.tokens_per_s == pytest.approx(400.0, rel=0.01)


def test_metrics_are_those_of_the_runner(bundle: Bundle) -> None:
    registry = CollectorRegistry()
    runner = Runner(bundle, EngineConfig(token_buckets=(64,)))
    meter = StepMeter(runner, Telemetry(registry, "toy"))
    sequences = [sequence_of("a", (2, 3)), sequence_of("b", (3, 3))]
    for step in range(3):
        meter.count(runner.run(sequences), 0.1)
        for sequence in sequences[step % 2 :]:
            sequence.position += 1

    def value(name: str) -> float | None:
        return registry.get_sample_value(f"fit_{name}", {"model_name": "toy"})

    assert value("step_time_seconds_count") == 3
    assert value("iteration_tokens_total_sum") == 3 * 30
    assert value("packing_efficiency_ratio_sum") == pytest.approx(3 * 30 / 64)
    assert value("distinct_resolutions_per_step_sum") == 3 * 2
    assert value("rope_cache_hits_total") == runner.rope.hits
    assert value("rope_cache_misses_total") == runner.rope.misses == 2
    assert value("rope_cache_bytes") == runner.rope.num_bytes
    assert value("modulation_cache_hits_total") == runner.modulation.hits > 0
    assert value("modulation_cache_misses_total") == runner.modulation.misses > 0
