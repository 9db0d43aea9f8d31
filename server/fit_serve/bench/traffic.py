"""Traffic: which pictures are asked for, and when.

Knows sizes, steps and arrival times; not who answers them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from fit_serve.request import SequenceRequest


@dataclass(frozen=True)
class SizeClass:
    """Pictures of about side x side pixels: their share of the traffic and their steps."""

    side: int
    share: float
    num_inference_steps: int


@dataclass(frozen=True)
class Arrival:
    """One request and its moment, in seconds after the start."""

    at_s: float
    request: SequenceRequest


# Mixed set "C" of the field (four areas at 15/25/45/15 %, 20/20/25/35 steps) on the areas FiT was
# made for; half of each non-square. The first is scaled to models of at most 192 px.
TRAFFIC: dict[str, tuple[SizeClass, ...]] = {
    "c-fit-small": (
        SizeClass(96, 0.15, 20),
        SizeClass(128, 0.25, 20),
        SizeClass(160, 0.45, 25),
        SizeClass(192, 0.15, 35),
    ),
    "c-fit": (
        SizeClass(256, 0.15, 20),
        SizeClass(384, 0.25, 20),
        SizeClass(512, 0.45, 25),
        SizeClass(768, 0.15, 35),
    ),
}
_ASPECTS = (2 / 3, 3 / 2, 1 / 2, 2.0, 3 / 4, 4 / 3)


def sizes_near(side: int, multiple: int) -> tuple[tuple[int, int], ...]:
    """The non-square (height, width) of about side x side pixels, both multiples of `multiple`."""
    sizes = []
    for aspect in _ASPECTS:
        width = round(side * aspect**0.5 / multiple) * multiple
        height = round(side * side / width / multiple) * multiple
        if width != height and (height, width) not in sizes:
            sizes.append((height, width))
    return tuple(sizes)


PROMPTS = (
    "a heron",
    "two kites over a harbour",
    "a red teapot on a wooden table beside a window, morning light",
    "an old map of an island with a lighthouse, a whale and three ships, in brown ink on paper",
)
"""What is asked for of a model that reads prompts."""


def make_requests(
    traffic: str,
    num_requests: int,
    num_classes: int,
    multiple: int,
    guidance_scale: float,
    guidance_interval: tuple[float, float],
    seed: int,
    sampler: str = "euler",
) -> list[SequenceRequest]:
    """Draw requests; without classes each has one of some prompts of unlike lengths.

    Raises:
        ValueError: the traffic is unknown.
    """
    if traffic not in TRAFFIC:
        raise ValueError(f"traffic {traffic!r} is unknown; known: {', '.join(TRAFFIC)}")
    kinds = TRAFFIC[traffic]
    rng = random.Random(seed)
    requests = []
    for number in range(num_requests):
        kind = rng.choices(kinds, weights=[k.share for k in kinds])[0]
        height = width = kind.side
        if rng.random() < 0.5:
            height, width = rng.choice(sizes_near(kind.side, multiple))
        requests.append(
            SequenceRequest(
                sequence_id=f"bench-{number}",
                class_label=rng.randrange(num_classes) if num_classes else None,
                prompt=None if num_classes else rng.choice(PROMPTS),
                height=height,
                width=width,
                seed=rng.randrange(2**31),
                num_inference_steps=kind.num_inference_steps,
                guidance_scale=guidance_scale,
                guidance_interval=guidance_interval,
                sampler=sampler,
            )
        )
    return requests


def poisson_arrivals(
    requests: list[SequenceRequest], rate: float | None, seed: int
) -> list[Arrival]:
    """Give each request its moment: exponential gaps at `rate` a second; all at once if None."""
    rng = random.Random(seed)
    at_s = 0.0
    arrivals = []
    for request in requests:
        if rate is not None:
            at_s += rng.expovariate(rate)
        arrivals.append(Arrival(at_s, request))
    return arrivals
