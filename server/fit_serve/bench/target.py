"""Who is measured: an engine in this process, or a server behind a URL."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Protocol

import httpx
from prometheus_client import CollectorRegistry

from fit_models.bundle import Bundle
from fit_serve.engine import EngineConfig, EngineHandle
from fit_serve.request import SequenceRequest
from fit_serve.telemetry import Telemetry

_MAX_CONNECTIONS = 256


class Target(Protocol):
    """Something that takes requests and can say how well it packed them."""

    def submit(self, request: SequenceRequest) -> Future[Any]:
        """Start a request."""
        ...

    def facts(self) -> dict[str, float]:
        """Packing efficiency, tokens and sequences a step, since the start."""
        ...


class EngineTarget:
    """An engine of its own, started on entry and stopped on exit."""

    def __init__(self, bundle: Bundle, config: EngineConfig) -> None:
        self._registry = CollectorRegistry()
        self._name = bundle.name
        self._engine = EngineHandle(bundle, config, Telemetry(self._registry, bundle.name))

    def __enter__(self) -> EngineTarget:
        self._engine.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._engine.stop()

    def submit(self, request: SequenceRequest) -> Future[Any]:
        """Start a request."""
        return self._engine.submit([request])[0]

    def facts(self) -> dict[str, float]:
        """Means over all steps so far."""
        steps = self._sample("step_time_seconds_count")
        return {
            "steps": steps,
            "busy_s": self._sample("step_time_seconds_sum"),
            "tokens": self._sample("iteration_tokens_total_sum"),
            "tokens_per_step": self._sample("iteration_tokens_total_sum") / steps,
            "sequences_per_step": self._sample("sequences_per_step_sum") / steps,
            "resolutions_per_step": self._sample("distinct_resolutions_per_step_sum") / steps,
            "packing_efficiency": self._sample("packing_efficiency_ratio_sum") / steps,
        }

    def _sample(self, name: str) -> float:
        value = self._registry.get_sample_value(f"fit_{name}", {"model_name": self._name})
        assert value is not None, name
        return value


class HttpTarget:
    """A running server, asked through `POST /generate`."""

    def __init__(self, url: str, timeout_s: float = 600.0) -> None:
        limits = httpx.Limits(max_connections=_MAX_CONNECTIONS)
        self._client = httpx.Client(base_url=url, timeout=timeout_s, limits=limits, trust_env=False)
        self._pool = ThreadPoolExecutor(_MAX_CONNECTIONS)

    def __enter__(self) -> HttpTarget:
        self._client.get("/health").raise_for_status()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._pool.shutdown()
        self._client.close()

    def submit(self, request: SequenceRequest) -> Future[Any]:
        """Start a request in a thread of its own."""
        subject: dict[str, object] = {"class": request.class_label}
        if request.prompt is not None:
            subject = {"prompt": request.prompt, "negative_prompt": request.negative_prompt}
        body = {
            **subject,
            "height": request.height,
            "width": request.width,
            "seed": request.seed,
            "num_inference_steps": request.num_inference_steps,
            "guidance_scale": request.guidance_scale,
            "guidance_interval": list(request.guidance_interval),
            "sampler": request.sampler,
        }
        return self._pool.submit(self._post, body)

    def facts(self) -> dict[str, float]:
        """Nothing: a server's steps are in its own metrics."""
        return {}

    def _post(self, body: dict[str, object]) -> int:
        response = self._client.post("/generate", json=body)
        response.raise_for_status()
        return len(response.content)
