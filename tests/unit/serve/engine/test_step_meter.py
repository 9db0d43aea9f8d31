"""What is counted of the steps reaches the metrics, each look-up once."""

from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry

from fit_models.bundle import Bundle
from fit_serve.engine.config import EngineConfig
from fit_serve.engine.packer import StepReport
from fit_serve.engine.runner import Runner
from fit_serve.engine.step_meter import StepMeter
from fit_serve.telemetry import Telemetry
from support.sequences import planned, request_of, sequence_of


def test_speed_follows_the_steps(bundle: Bundle) -> None:
    meter = StepMeter(Runner(bundle, EngineConfig()), None)
    assert meter.tokens_per_s == 0.0
    meter.count(StepReport(100, 128, 1, 1), 0.5)
    assert meter.tokens_per_s == pytest.approx(200.0)
    for _ in range(100):
        meter.count(StepReport(100, 128, 1, 1), 0.25)
    assert meter.tokens_per_s == pytest.approx(400.0, rel=0.01)


def test_a_step_is_predicted_from_the_speed_and_a_decoding_from_its_tokens(bundle: Bundle) -> None:
    meter, sequence = StepMeter(Runner(bundle, EngineConfig()), None), sequence_of("a", (2, 3))
    assert meter.cost_model() is None
    assert meter.decode_seconds(sequence) == 0.0
    meter.count(StepReport(100, 128, 1, 1), 0.5)
    meter.count_decode(sequence_of("b", (3, 4)), 0.24)
    model = meter.cost_model()
    assert model is not None
    assert model.step_seconds([20, 30, 50]) == pytest.approx(0.5)
    assert model.step_seconds([5000]) == pytest.approx(25.0)
    assert meter.decode_seconds(sequence) == pytest.approx(0.12)


def test_metrics_are_those_of_the_runner(bundle: Bundle) -> None:
    registry = CollectorRegistry()
    runner = Runner(bundle, EngineConfig(token_buckets=(64,)))
    meter = StepMeter(runner, Telemetry(registry, "toy"))
    hurried = planned(replace(request_of("b", (3, 3), steps=12), quality="fast"))
    first, later = sequence_of("a", (2, 3), steps=8), sequence_of("b", (2, 3), steps=8)
    for sequences in ([first, hurried], [first, hurried], [later, hurried]):
        turns = {s: s.next_turn() for s in sequences}
        meter.count(runner.execute(runner.prepare(sequences)).report, 0.1)
        for sequence, turn in turns.items():
            sequence.advance(turn)

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"fit_{name}", {"model_name": "toy", **labels})

    assert value("step_time_seconds_count") == 3
    assert value("iteration_tokens_total_sum") == 3 * 30
    assert value("packing_efficiency_ratio_sum") == pytest.approx(3 * 30 / 64)
    assert value("distinct_resolutions_per_step_sum") == 3 * 2
    assert value("evaluations_total", how="computed") == 6
    assert value("evaluations_total", how="reused") == hurried.position - 3 > 0
    assert value("rope_cache_hits_total") == runner.rope.hits
    assert value("rope_cache_misses_total") == runner.rope.misses == 2
    assert value("rope_cache_bytes") == runner.rope.num_bytes
    assert value("modulation_cache_hits_total") == runner.modulation.hits > 0
    assert value("modulation_cache_misses_total") == runner.modulation.misses > 0
