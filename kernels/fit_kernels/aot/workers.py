"""Processes that compile: Triton's compiler is single-threaded and holds the interpreter's lock."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass

from fit_kernels.aot.compilation import Measurement, compile_and_measure
from fit_kernels.aot.specialisation import Configuration
from fit_kernels.aot.targets import Target


@dataclass(frozen=True)
class Result:
    """One configuration on one GPU: measured, or the reason why it does not compile."""

    configuration: Configuration
    target: Target
    measurement: Measurement | None
    error: str = ""


def compile_all(
    configurations: Sequence[Configuration], targets: Sequence[Target], jobs: int
) -> Iterator[Result]:
    """Compile every configuration for every GPU; results come as they are ready."""
    work = [(c, t) for c in sorted(configurations, key=_cost, reverse=True) for t in targets]
    start = multiprocessing.get_context("spawn")
    with (
        _environment(OMP_NUM_THREADS="1"),
        _cache_of_its_own(),
        ProcessPoolExecutor(jobs, mp_context=start) as pool,
    ):
        futures = [pool.submit(_compile, *item) for item in work]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _compile(configuration: Configuration, target: Target) -> Result:
    try:
        return Result(configuration, target, compile_and_measure(configuration, target))
    except Exception as error:  # whatever the compiler raises belongs in the table of failures
        return Result(configuration, target, None, f"{type(error).__name__}: {error}")


def _cost(configuration: Configuration) -> bool:
    """Longest first, so that no worker is left alone with one at the end: attention's."""
    return configuration.kernel.startswith("attention")


@contextmanager
def _cache_of_its_own() -> Iterator[None]:
    """Nothing compiled earlier may answer, and nothing is left behind."""
    with (
        tempfile.TemporaryDirectory(prefix="fit-kernels-aot-") as folder,
        _environment(TRITON_CACHE_DIR=folder),
    ):
        yield


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Set variables for processes started meanwhile."""
    before: Mapping[str, str | None] = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value
