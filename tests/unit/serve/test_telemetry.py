"""Every series exists from the start, and events move what they should."""

import pytest
from prometheus_client import CollectorRegistry

from fit_serve.telemetry import EVALUATIONS, FINISHED_REASONS, REJECTED_REASONS, Telemetry

NAMES = {
    "fit_num_requests_running",
    "fit_num_requests_waiting",
    "fit_request_success",
    "fit_requests_rejected",
    "fit_e2e_request_latency_seconds",
    "fit_request_queue_time_seconds",
    "fit_request_inference_time_seconds",
    "fit_request_decode_time_seconds",
    "fit_request_encode_time_seconds",
    "fit_iteration_tokens_total",
    "fit_sequences_per_step",
    "fit_packing_efficiency_ratio",
    "fit_distinct_resolutions_per_step",
    "fit_step_time_seconds",
    "fit_evaluations",
    "fit_graph_steps",
    "fit_graph_bytes",
    "fit_rope_cache_hits",
    "fit_rope_cache_misses",
    "fit_rope_cache_bytes",
    "fit_modulation_cache_hits",
    "fit_modulation_cache_misses",
    "fit_prompt_cache_hits",
    "fit_prompt_cache_misses",
    "fit_prompt_cache_bytes",
    "fit_prompt_read_time_seconds",
    "fit_caption_cache_hits",
    "fit_caption_cache_misses",
    "fit_caption_cache_bytes",
}


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def telemetry(registry: CollectorRegistry) -> Telemetry:
    return Telemetry(registry, "fake-fit")


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(name, {"model_name": "fake-fit", **labels})


def test_every_metric_exists_at_zero_from_the_start(
    registry: CollectorRegistry, telemetry: Telemetry
) -> None:
    metrics = {metric.name: metric for metric in registry.collect()}
    assert set(metrics) == NAMES
    for metric in metrics.values():
        counted = [s for s in metric.samples if not s.name.endswith("_created")]
        assert counted, metric.name
        assert all(s.value == 0 for s in counted), metric.name
        assert all(s.labels["model_name"] == "fake-fit" for s in counted), metric.name
    for reason in FINISHED_REASONS:
        assert value(registry, "fit_request_success_total", finished_reason=reason) == 0
    for reason in REJECTED_REASONS:
        assert value(registry, "fit_requests_rejected_total", reason=reason) == 0
    for how in EVALUATIONS:
        assert value(registry, "fit_evaluations_total", how=how) == 0


def test_two_servers_in_one_process_do_not_mix(telemetry: Telemetry) -> None:
    other = CollectorRegistry()
    Telemetry(other, "fake-fit")
    telemetry.request_rejected("invalid")
    assert value(other, "fit_requests_rejected_total", reason="invalid") == 0


def test_a_time_that_was_not_measured_is_not_recorded(
    registry: CollectorRegistry, telemetry: Telemetry
) -> None:
    telemetry.request_finished("cancelled", e2e_s=1.0, queued_s=0.0)
    assert value(registry, "fit_e2e_request_latency_seconds_count") == 1
    assert value(registry, "fit_request_queue_time_seconds_count") == 1
    assert value(registry, "fit_request_decode_time_seconds_count") == 0


@pytest.mark.parametrize("event", ["request_finished", "request_rejected"])
def test_an_unknown_reason_is_a_bug(telemetry: Telemetry, event: str) -> None:
    arguments = {"e2e_s": 1.0} if event == "request_finished" else {}
    with pytest.raises(KeyError):
        getattr(telemetry, event)("bored", **arguments)


def test_a_step_records_what_was_packed(registry: CollectorRegistry, telemetry: Telemetry) -> None:
    telemetry.step_finished(
        real_tokens=96, padded_tokens=128, sequences=3, resolutions=2, reused=5, seconds=0.5
    )
    assert value(registry, "fit_iteration_tokens_total_sum") == 96
    assert value(registry, "fit_packing_efficiency_ratio_sum") == 0.75
    assert value(registry, "fit_sequences_per_step_sum") == 3
    assert value(registry, "fit_distinct_resolutions_per_step_sum") == 2
    assert value(registry, "fit_step_time_seconds_sum") == 0.5
    assert value(registry, "fit_evaluations_total", how="computed") == 3
    assert value(registry, "fit_evaluations_total", how="reused") == 5


def test_cache_look_ups_add_up_and_bytes_are_the_last(
    registry: CollectorRegistry, telemetry: Telemetry
) -> None:
    telemetry.rope_cache(hits=3, misses=1, size_bytes=100)
    telemetry.rope_cache(hits=2, misses=0, size_bytes=80)
    telemetry.modulation_cache(hits=5, misses=2)
    assert value(registry, "fit_rope_cache_hits_total") == 5
    assert value(registry, "fit_rope_cache_misses_total") == 1
    assert value(registry, "fit_rope_cache_bytes") == 80
    assert value(registry, "fit_modulation_cache_hits_total") == 5
    assert value(registry, "fit_modulation_cache_misses_total") == 2


def test_queue_gauges_are_read_when_asked(
    registry: CollectorRegistry, telemetry: Telemetry
) -> None:
    sizes = [4.0, 7.0]
    telemetry.watch_queue(running=lambda: sizes[0], waiting=lambda: sizes[1])
    sizes[1] = 9.0
    assert value(registry, "fit_num_requests_running") == 4
    assert value(registry, "fit_num_requests_waiting") == 9


def test_model_facts_are_labels_of_a_constant(
    registry: CollectorRegistry, telemetry: Telemetry
) -> None:
    telemetry.model_info({"dtype": "float32", "device": "cpu"})
    assert value(registry, "fit_model_info", dtype="float32", device="cpu") == 1
