"""The names of everything that is measured, in one place.

Metrics go into the registry that is handed in, never into the global one, so that two servers in
one process (and two tests) do not mix. Names are vLLM's where vLLM has one, behind our prefix;
every series carries `model_name` and exists, at zero, from the start. This module knows neither
engine nor web: they call it.
"""

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

LATENCY_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 120.0, 300.0)
STEP_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 60.0)
TOKEN_BUCKETS = tuple(float(2**power) for power in range(4, 18))
COUNT_BUCKETS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
RATIO_BUCKETS = (0.25, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.975, 1.0)

FINISHED_REASONS = ("completed", "failed", "cancelled", "timed_out")
EVALUATIONS = ("computed", "reused")
GRAPH_OUTCOMES = ("hit", "miss", "larger")
REJECTED_REASONS = ("invalid", "overloaded", "late", "not_ready")


class Telemetry:
    """All metrics of one server, and the events that move them. Safe to call from any thread."""

    def __init__(self, registry: CollectorRegistry, model_name: str) -> None:
        """Register every metric, at zero, for the model of this name."""
        self.registry = registry
        self._model_name = model_name
        self._define_requests()
        self._define_steps()
        self._define_caches()
        self._define_prompts()

    def request_finished(
        self,
        reason: str,
        e2e_s: float,
        queued_s: float | None = None,
        run_s: float | None = None,
        decode_s: float | None = None,
        encode_s: float | None = None,
    ) -> None:
        """Count the one end of an accepted request; `reason` is one of FINISHED_REASONS.

        Times are seconds; None means not measured (a cancelled request has no decode time) and is
        not recorded, which is different from zero.
        """
        self._finished[reason].inc()
        self._e2e.observe(e2e_s)
        for histogram, seconds in (
            (self._queue, queued_s),
            (self._inference, run_s),
            (self._decode, decode_s),
            (self._encode, encode_s),
        ):
            if seconds is not None:
                histogram.observe(seconds)

    def request_rejected(self, reason: str) -> None:
        """Count a request refused before it was queued; `reason` is one of REJECTED_REASONS."""
        self._rejected[reason].inc()

    def watch_queue(self, running: Callable[[], float], waiting: Callable[[], float]) -> None:
        """Read the two queue gauges from these functions whenever metrics are asked for."""
        self._running.set_function(running)
        self._waiting.set_function(waiting)

    def step_finished(
        self,
        real_tokens: int,
        padded_tokens: int,
        sequences: int,
        resolutions: int,
        reused: int,
        seconds: float,
    ) -> None:
        """Record one engine step.

        `real_tokens` are those of sequences (both branches), `padded_tokens` all that were
        launched, padding to the bucket included; `sequences` counts running sequences,
        `resolutions` their distinct sizes, `reused` evaluations that needed no network.
        """
        assert 0 < real_tokens <= padded_tokens, (real_tokens, padded_tokens)
        self._step_tokens.observe(real_tokens)
        self._step_sequences.observe(sequences)
        self._step_packing.observe(real_tokens / padded_tokens)
        self._step_resolutions.observe(resolutions)
        self._step_time.observe(seconds)
        self._evaluations["computed"].inc(sequences)
        self._evaluations["reused"].inc(reused)

    def rope_cache(self, hits: int, misses: int, size_bytes: int) -> None:
        """Add look-ups of rotary tables since the last call, and set the bytes held now."""
        self._rope_hits.inc(hits)
        self._rope_misses.inc(misses)
        self._rope_bytes.set(size_bytes)

    def modulation_cache(self, hits: int, misses: int) -> None:
        """Add look-ups of modulation rows since the last call."""
        self._modulation_hits.inc(hits)
        self._modulation_misses.inc(misses)

    def prompts_looked_up(self, hits: int, misses: int) -> None:
        """Add prompts of a request that were read before, and those that were not."""
        self._prompt_hits.inc(hits)
        self._prompt_misses.inc(misses)

    def prompt_read(self, seconds: float, size_bytes: int) -> None:
        """Record a prompt read by the language model, and set the bytes kept now."""
        self._prompt_time.observe(seconds)
        self._prompt_bytes.set(size_bytes)

    def caption_cache(self, hits: int, misses: int, size_bytes: int) -> None:
        """Add look-ups of captions' keys and values since the last call; set the bytes held now."""
        self._caption_hits.inc(hits)
        self._caption_misses.inc(misses)
        self._caption_bytes.set(size_bytes)

    def graphs(self, hits: int, misses: int, larger: int, size_bytes: int) -> None:
        """Set how many steps were replayed, should have been, and were too large; and the bytes."""
        for outcome, count in zip(GRAPH_OUTCOMES, (hits, misses, larger), strict=True):
            known = self._graph_counts[outcome]
            self._graph_steps[outcome].inc(count - known)
            self._graph_counts[outcome] = count
        self._graph_bytes.set(size_bytes)

    def model_info(self, facts: Mapping[str, str]) -> None:
        """Publish what is served: version, device, dtype, attention, as labels of a constant 1.

        Call it once; the keys become the label names beside `model_name`.
        """
        gauge = Gauge(
            "fit_model_info",
            "What is served, as labels; always 1.",
            ["model_name", *facts],
            registry=self.registry,
        )
        gauge.labels(model_name=self._model_name, **facts).set(1)

    def _define_requests(self) -> None:
        self._running = self._gauge("num_requests_running", "Sequences in the running batch.")
        self._waiting = self._gauge("num_requests_waiting", "Sequences waiting for the batch.")
        self._finished = self._counters(
            "request_success_total",
            "Accepted requests by how they ended.",
            "finished_reason",
            FINISHED_REASONS,
        )
        self._rejected = self._counters(
            "requests_rejected_total",
            "Requests refused before queueing, by reason.",
            "reason",
            REJECTED_REASONS,
        )
        self._e2e = self._latency("e2e_request_latency_seconds", "From arrival to answer.")
        self._queue = self._latency("request_queue_time_seconds", "From arrival to first step.")
        self._inference = self._latency("request_inference_time_seconds", "First to last step.")
        self._decode = self._latency("request_decode_time_seconds", "Last step to pixels.")
        self._encode = self._latency("request_encode_time_seconds", "Pixels to PNG, JPEG, WebP.")

    def _define_steps(self) -> None:
        self._step_tokens = self._histogram(
            "iteration_tokens_total", "Real packed tokens of an engine step.", TOKEN_BUCKETS
        )
        self._step_sequences = self._histogram(
            "sequences_per_step", "Sequences that shared an engine step.", COUNT_BUCKETS
        )
        self._step_packing = self._histogram(
            "packing_efficiency_ratio", "Real over launched tokens of a step.", RATIO_BUCKETS
        )
        self._step_resolutions = self._histogram(
            "distinct_resolutions_per_step", "Different image sizes in a step.", COUNT_BUCKETS
        )
        self._step_time = self._histogram(
            "step_time_seconds", "Duration of an engine step.", STEP_BUCKETS
        )

        self._evaluations = self._counters(
            "evaluations_total",
            "Evaluations of sequences, by whether the network did them.",
            "how",
            EVALUATIONS,
        )

    def _define_caches(self) -> None:
        self._graph_counts = dict.fromkeys(GRAPH_OUTCOMES, 0)
        self._graph_steps = self._counters(
            "graph_steps_total",
            "Steps by what became of the CUDA graph meant for them; none without graphs.",
            "outcome",
            GRAPH_OUTCOMES,
        )
        self._graph_bytes = self._gauge("graph_bytes", "Device memory that CUDA graphs took.")
        self._rope_hits = self._counter("rope_cache_hits_total", "Rotary tables found.")
        self._rope_misses = self._counter("rope_cache_misses_total", "Rotary tables made.")
        self._rope_bytes = self._gauge("rope_cache_bytes", "Bytes of rotary tables held.")
        self._modulation_hits = self._counter(
            "modulation_cache_hits_total", "Modulation rows found."
        )
        self._modulation_misses = self._counter(
            "modulation_cache_misses_total", "Modulation rows computed."
        )

    def _define_prompts(self) -> None:
        """All stay at zero for a model that draws classes."""
        self._prompt_hits = self._counter("prompt_cache_hits_total", "Prompts read before.")
        self._prompt_misses = self._counter("prompt_cache_misses_total", "Prompts not read before.")
        self._prompt_bytes = self._gauge("prompt_cache_bytes", "Bytes of states of prompts kept.")
        self._prompt_time = self._histogram(
            "prompt_read_time_seconds", "The language model reading one prompt.", STEP_BUCKETS
        )
        self._caption_hits = self._counter(
            "caption_cache_hits_total", "Captions whose keys and values were found."
        )
        self._caption_misses = self._counter(
            "caption_cache_misses_total", "Captions whose keys and values were computed."
        )
        self._caption_bytes = self._gauge(
            "caption_cache_bytes", "Bytes of captions' keys and values held."
        )

    def _gauge(self, name: str, meaning: str) -> Gauge:
        gauge = Gauge(f"fit_{name}", meaning, ["model_name"], registry=self.registry)
        return gauge.labels(self._model_name)

    def _counter(self, name: str, meaning: str) -> Counter:
        counter = Counter(f"fit_{name}", meaning, ["model_name"], registry=self.registry)
        return counter.labels(self._model_name)

    def _counters(
        self, name: str, meaning: str, label: str, values: tuple[str, ...]
    ) -> dict[str, Counter]:
        counter = Counter(f"fit_{name}", meaning, ["model_name", label], registry=self.registry)
        return {value: counter.labels(self._model_name, value) for value in values}

    def _latency(self, name: str, meaning: str) -> Histogram:
        return self._histogram(name, f"{meaning} Of accepted requests.", LATENCY_BUCKETS)

    def _histogram(self, name: str, meaning: str, buckets: tuple[float, ...]) -> Histogram:
        histogram = Histogram(
            f"fit_{name}", meaning, ["model_name"], buckets=buckets, registry=self.registry
        )
        return histogram.labels(self._model_name)
