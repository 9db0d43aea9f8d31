"""Pictures of every class, many at a time, through the engine.

Knows sizes, sequences and how many the engine may hold; not what the pictures are for.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import TYPE_CHECKING, Any

from fit_serve.request import SequenceRequest, SequenceResult

if TYPE_CHECKING:
    from fit_serve.app import Assembly
    from fit_serve.limits import ModelLimits

IN_FLIGHT = 128
"""Sequences that the engine holds at a time: enough to fill its steps, fewer than it queues."""
AREA_SIDES = (96, 160)
"""Pictures have areas from 96 x 96 to 160 x 160 pixels, log-uniform."""


def sizes_like_photographs(
    shapes: Sequence[Sequence[tuple[int, int]]], num_images: int, seed: int, multiple: int
) -> list[tuple[int, int, int]]:
    """Draw (label, height, width) of `num_images` pictures a class, with its photos' aspects.

    `shapes` are the photos' (height, width), class by class. Areas are drawn from `AREA_SIDES`;
    sides are multiples of `multiple`, and at least two of them.
    """
    import numpy

    generator = numpy.random.default_rng(seed)
    low, high = (2 * math.log(side) for side in AREA_SIDES)
    sizes = []
    for label, of_class in enumerate(shapes):
        for _ in range(num_images):
            height, width = of_class[int(generator.integers(len(of_class)))]
            scale = math.sqrt(math.exp(generator.uniform(low, high)) / (height * width))
            sides = (max(2, round(side * scale / multiple)) for side in (height, width))
            sizes.append((label, *(side * multiple for side in sides)))
    return sizes


def sizes_of_resolution(
    num_classes: int, num_images: int, height: int, width: int
) -> list[tuple[int, int, int]]:
    """(label, height, width) of `num_images` pictures a class, the classes taking turns.

    So more pictures a class leave the first ones and their seeds as they are.
    """
    return [(label, height, width) for _ in range(num_images) for label in range(num_classes)]


def resolutions(text: str) -> list[tuple[int, int]]:
    """Read "256x256,160x320" as (height, width) in pixels.

    Raises `ValueError` for what is none, or named twice.
    """
    found = []
    for part in text.split(","):
        sides = part.strip().lower().split("x")
        if len(sides) != 2 or not all(side.isdecimal() and int(side) for side in sides):
            raise ValueError(f"sizes: {part.strip()!r} is no HEIGHTxWIDTH in pixels, like 160x320")
        found.append((int(sides[0]), int(sides[1])))
    if len(set(found)) != len(found):
        raise ValueError(f"sizes: {text!r} names a resolution twice")
    return found


def requests_of(
    sizes: Sequence[tuple[int, int, int]],
    seed: int,
    limits: "ModelLimits",
    sampling: Mapping[str, Any],
) -> list[SequenceRequest]:
    """One sequence per (label, height, width); picture i has seed `seed` + i.

    `sampling` holds the keywords of `ModelLimits.complete` that say how; None is the model's own.
    Raises `InvalidRequest` if the model cannot do it.
    """
    sequences = []
    for number, (label, height, width) in enumerate(sizes):
        request = limits.complete(label, height, width, seed=seed + number, **sampling)
        limits.check(request)
        sequences += request.sequences()
    return sequences


def make_pictures(
    assembly: "Assembly",
    requests: Sequence[SequenceRequest],
    take: Callable[[SequenceResult], Any] = lambda result: result.pixels,
) -> list[Any]:
    """Start the engine and run all sequences; what `take` makes of each result, in order.

    That is its pixels, uint8 [height, width, 3], if nothing else is asked for.
    """
    from fit_serve.cli.progress import progress_bar

    assembly.start()
    try:
        with progress_bar("generating", "pictures") as advance:
            results = in_flight(assembly.engine.submit, requests, IN_FLIGHT, advance, take)
    finally:
        assembly.stop()
    return results


def in_flight(
    submit: Callable[[Sequence[SequenceRequest]], Iterable[Future[SequenceResult]]],
    requests: Sequence[SequenceRequest],
    limit: int,
    on_progress: Callable[[int, int], None],
    take: Callable[[SequenceResult], Any] = lambda result: result,
) -> list[Any]:
    """Keep at most `limit` sequences submitted until all are done; results in order.

    `take` makes of each result, as it comes, what is kept of it.
    Raises what `submit` raises and what a sequence ends with.
    """
    results: dict[str, Any] = {}
    waiting = list(reversed(requests))
    pending: set[Future[SequenceResult]] = set()
    while waiting or pending:
        while waiting and len(pending) < limit:
            pending.update(submit([waiting.pop()]))
        done, pending = wait(pending, return_when=FIRST_COMPLETED)
        for future in done:
            result = future.result()
            results[result.sequence_id] = take(result)
        on_progress(len(results), len(requests))
    return [results[request.sequence_id] for request in requests]
