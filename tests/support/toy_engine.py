"""A real engine on the toy bundle, and ways to hold it still and to break its autoencoder."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from fit_models.bundle import Bundle
from fit_serve.engine import EngineConfig, EngineHandle
from fit_serve.request import Progress, SequenceRequest, SequenceResult
from support.fake_runner import FakeClock

PATIENCE_S = 30.0
"""How long a test waits for a thread; none waits unless something is wrong."""


@contextmanager
def running(
    bundle: Bundle, config: EngineConfig | None = None, clock: FakeClock | None = None
) -> Iterator[EngineHandle]:
    handle = EngineHandle(bundle, config, clock=clock) if clock else EngineHandle(bundle, config)
    handle.start()
    try:
        yield handle
    finally:
        handle.stop()


def submit(handle: EngineHandle, request: SequenceRequest) -> Future[SequenceResult]:
    return handle.submit([request])[0]


def end_of(future: Future[SequenceResult]) -> SequenceResult | BaseException:
    return future.exception(PATIENCE_S) or future.result()


@dataclass
class _Gate:
    """An `on_progress` that holds the step loop at its first call, until it is opened."""

    is_held: threading.Event = field(default_factory=threading.Event)
    may_go: threading.Event = field(default_factory=threading.Event)

    def __call__(self, progress: Progress) -> None:
        self.is_held.set()
        assert self.may_go.wait(PATIENCE_S)


@contextmanager
def held(
    handle: EngineHandle, *requests: SequenceRequest
) -> Iterator[list[Future[SequenceResult]]]:
    """Submit these; inside, the loop stands still in the first step of the first of them."""
    gate = _Gate()
    futures = handle.submit(requests, gate)
    assert gate.is_held.wait(PATIENCE_S)
    try:
        yield futures
    finally:
        gate.may_go.set()


def with_decode(bundle: Bundle, decode: Callable[[Tensor], None]) -> Bundle:
    """The bundle with something that happens (an error, a wait) before latents are decoded."""
    autoencoder: Any = _Decoding(bundle.autoencoder, decode)
    return replace(bundle, autoencoder=autoencoder)


class _Decoding:
    def __init__(self, real: Any, before: Callable[[Tensor], None]) -> None:
        self.downsampling = real.downsampling
        self._real, self._before = real, before

    def decode(self, latents: Tensor) -> Tensor:
        self._before(latents)
        return self._real.decode(latents)


def threads_of(name: str) -> list[threading.Thread]:
    """Threads of engines that still run."""
    return [thread for thread in threading.enumerate() if thread.name.startswith(name)]
