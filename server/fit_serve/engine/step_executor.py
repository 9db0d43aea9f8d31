"""Who runs the device's half of a step: the loop itself, or a thread beside it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol


class StepExecutor(Protocol):
    """Runs steps one after another, in the order they were handed in."""

    depth: int
    """Steps that may be under way while the next one is planned."""

    def submit(self, execute: Callable[[Any], Any], step: Any) -> Future[Any]:
        """Run `execute(step)`; errors are in the future."""
        ...

    def close(self) -> None:
        """Give back what it holds; nothing is submitted any more."""
        ...


class InlineExecutor:
    """The plain loop: a step is done before the next one is planned."""

    depth = 0

    def submit(self, execute: Callable[[Any], Any], step: Any) -> Future[Any]:
        """Run it now."""
        future: Future[Any] = Future()
        try:
            future.set_result(execute(step))
        except Exception as error:
            future.set_exception(error)
        return future

    def close(self) -> None:
        """Nothing is held."""


class ThreadExecutor:
    """The overlapped loop: the next step is planned and packed while this one runs."""

    depth = 1

    def __init__(self, initialise: Callable[[], None]) -> None:
        """`initialise` is called in the new thread first."""
        self._pool = ThreadPoolExecutor(1, "engine-steps", initializer=initialise)

    def submit(self, execute: Callable[[Any], Any], step: Any) -> Future[Any]:
        """Run it after those before."""
        return self._pool.submit(execute, step)

    def close(self) -> None:
        """End the thread after the step it runs."""
        self._pool.shutdown(wait=False)
