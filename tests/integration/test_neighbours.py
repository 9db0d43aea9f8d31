"""Law 1, whole engine: a picture made beside forty others is the picture made alone.

A sequence nobody looks at beats time: its progress tells the test, on the engine's own thread, that
a step is over, and there the others arrive and are cancelled. So every run is the same.
"""

from collections import defaultdict
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import numpy
import pytest

from fit_models.bundle import Bundle, load_bundle
from fit_models.diffusion.sampler import SAMPLERS
from fit_serve.engine import EngineConfig, EngineHandle
from fit_serve.errors import Cancelled
from fit_serve.quality import QUALITIES
from fit_serve.request import Progress, SequenceRequest, SequenceResult
from support.sequences import request_of
from support.toy_engine import PATIENCE_S, end_of, running, submit

NUM_STEPS = 24
CONFIGS = {
    "default": EngineConfig(),
    "small": EngineConfig(
        max_num_batched_tokens=90,
        max_num_seqs=6,
        rope_cache_tokens=40,
        modulation_cache_rows=8,
        decode_workers=2,
    ),
    "buckets": EngineConfig(token_buckets=(64, 128, 256, 512)),
    "overlapped": EngineConfig(
        max_num_batched_tokens=120, max_num_seqs=6, rope_cache_tokens=40, overlap=True
    ),
    "repeats": EngineConfig(step_cache_order=0, overlap=True),
    "invariant": EngineConfig(
        batch_invariant=True, max_num_batched_tokens=90, rope_cache_tokens=40
    ),
    "padded": EngineConfig(batching="padded-mixed", max_num_batched_tokens=200),
}


@dataclass(frozen=True)
class Visit:
    """One request: the step at which it comes, and the one at which it is cancelled, if it is."""

    request: SequenceRequest
    comes: int
    leaves: int | None


def forty_visits(seed: int) -> list[Visit]:
    random = Random(seed)
    visits = []
    for number in range(40):
        low, high = random.choice(((0.0, 1.0), (0.0, 0.6), (0.3, 0.8)))
        request = request_of(
            f"visit-{number}",
            (random.randint(1, 6), random.randint(1, 6)),
            steps=random.randint(1, 12),
            scale=random.choice((1.0, 1.5, 3.0)),
            interval=(low, high),
            sampler=random.choice(sorted(SAMPLERS)),
            seed=random.randrange(1000),
            label=random.randrange(3),
            quality=random.choice(sorted(QUALITIES)),
            priority=random.randrange(3),
        )
        comes = random.randrange(NUM_STEPS - 2)
        leaves = random.randint(comes, NUM_STEPS - 1) if random.random() < 0.25 else None
        visits.append(Visit(request, comes, leaves))
    return visits


def play(handle: EngineHandle, visits: list[Visit]) -> dict[str, Future[SequenceResult]]:
    """Let everybody come and go at their steps."""
    futures: dict[str, Future[SequenceResult]] = {}
    coming, leaving = defaultdict(list), defaultdict(list)
    for visit in visits:
        coming[visit.comes].append(visit.request)
        leaving[visit.leaves].append(visit.request.sequence_id)

    def beat(progress: Progress) -> None:
        step = progress.evaluations_done - 1
        for request in coming[step]:
            futures[request.sequence_id] = submit(handle, request)
        handle.cancel(leaving[step])

    metronome = request_of("metronome", (1, 1), steps=NUM_STEPS, scale=1.0)
    (future,) = handle.submit([metronome], beat)
    future.result(PATIENCE_S)
    return futures


def greatest_difference(one: SequenceResult, other: SequenceResult) -> int:
    """Of any value of any pixel."""
    return int(numpy.abs(one.pixels.astype(int) - other.pixels.astype(int)).max())


@pytest.fixture(scope="module")
def bundle(toy_folder: Path) -> Bundle:
    return load_bundle(str(toy_folder))


@pytest.mark.parametrize(("seed", "name"), list(enumerate(CONFIGS, start=1)))
def test_forty_unlike_requests_do_not_notice_each_other(
    bundle: Bundle, name: str, seed: int
) -> None:
    visits = forty_visits(seed)
    with running(bundle, CONFIGS[name]) as handle:
        futures = play(handle, visits)
        ends = {name: end_of(future) for name, future in futures.items()}
    assert len(ends) == len(visits)
    num_cancelled = 0
    quiet = replace(CONFIGS[name], batching="serial")
    with running(bundle, quiet) as handle:
        alone = {v.request: submit(handle, v.request).result(PATIENCE_S) for v in visits}
    for visit in visits:
        end = ends[visit.request.sequence_id]
        if visit.leaves is not None and isinstance(end, Cancelled):
            num_cancelled += 1
            continue
        assert isinstance(end, SequenceResult), (visit, end)
        allowed = 0 if quiet.batch_invariant else 1
        assert greatest_difference(end, alone[visit.request]) <= allowed, visit
    assert 0 < num_cancelled < len(visits) / 2


def test_what_was_cancelled_beside_it_does_not_change_a_picture(bundle: Bundle) -> None:
    stays = request_of("stays", (4, 5), steps=8, sampler="sde", seed=7)
    pictures = []
    with running(bundle) as handle:
        for leaves in (None, 5, 9):
            others = [
                Visit(request_of(f"other-{i}", (4, 5), steps=8, sampler="sde", seed=i), i, leaves)
                for i in range(4)
            ]
            futures = play(handle, [Visit(stays, 2, None), *others])
            pictures.append(futures["stays"].result(PATIENCE_S))
            assert all(
                isinstance(end_of(futures[other.request.sequence_id]), SequenceResult | Cancelled)
                for other in others
            )
        another = submit(handle, replace(stays, seed=8)).result(PATIENCE_S)
    assert greatest_difference(pictures[0], pictures[1]) <= 1
    assert greatest_difference(pictures[0], pictures[2]) <= 1
    assert greatest_difference(pictures[0], another) > 10
