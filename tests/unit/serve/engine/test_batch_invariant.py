"""Bit for bit: with `batch_invariant` a picture is the same whatever runs beside it."""

from random import Random

import numpy
import pytest
import torch

from fit_models.bundle import EMBEDDED, Bundle, load_bundle
from fit_models.diffusion.sampler import SAMPLERS
from fit_serve.engine import EngineConfig
from fit_serve.engine.runner import Runner
from fit_serve.engine.step_cache import StepCache
from fit_serve.quality import QUALITIES
from fit_serve.request import SequenceRequest
from support.sequences import planned, request_of
from support.stepping import Visit, alone, together
from support.toy_engine import PATIENCE_S, running, submit

INVARIANT = EngineConfig(batch_invariant=True)


def any_request(random: Random, name: str, largest: int = 5, steps: int = 6) -> SequenceRequest:
    low, high = random.choice(((0.0, 1.0), (0.0, 0.6), (0.3, 0.8)))
    return request_of(
        name,
        (random.randint(1, largest), random.randint(1, largest)),
        random.randint(1, steps),
        random.choice((1.0, 1.5, 3.0)),
        (low, high),
        random.choice(sorted(SAMPLERS)),
        random.randrange(1000),
        random.randrange(3),
        random.choice(sorted(QUALITIES)),
    )


def check_mix(bundle: Bundle, seed: int) -> None:
    """A sequence alone, and among up to five others of which some sit out."""
    random = Random(seed)
    cache = StepCache(random.choice(("plan", "change")), random.choice((0, 1)))
    config = EngineConfig(
        batch_invariant=True,
        rope_cache_tokens=random.choice((20, 10_000)),
        modulation_cache_rows=random.choice((4, 1000)),
    )
    visits = [
        Visit(
            any_request(random, str(i)),
            random.randrange(4),
            frozenset(random.sample(range(10), random.randrange(4))),
        )
        for i in range(random.randint(2, 6))
    ]
    who = random.randrange(len(visits))
    among = together(bundle, visits, config, cache)[who]
    assert torch.equal(among, alone(bundle, visits[who].request, INVARIANT, cache)), seed


@pytest.mark.parametrize("seed", range(15))
def test_a_latent_is_the_same_alone_and_among_others(bundle: Bundle, seed: int) -> None:
    check_mix(bundle, seed)


@pytest.mark.slow
def test_a_latent_is_the_same_in_two_hundred_mixes(bundle: Bundle) -> None:
    for seed in range(1000, 1200):
        check_mix(bundle, seed)


def test_packs_of_its_own_are_what_makes_it_so_and_nothing_else(bundle: Bundle) -> None:
    """A sequence has the pack of a membership of one, at every step."""
    runner = Runner(bundle, INVARIANT)
    everybody = [planned(request_of(str(i), (1 + i, 2))) for i in range(4)]
    prepared = runner.prepare(everybody)
    assert [pack.batch.sequences for pack in prepared.packs] == [(s,) for s in everybody]
    assert runner.modulation._one_by_one
    result = runner.execute(prepared)
    assert result.report.num_sequences == 4
    assert (
        result.report.real_tokens
        == result.report.padded_tokens
        == sum(4 * (1 + i) for i in range(4))
    )


@pytest.mark.parametrize("overlap", [False, True])
def test_pictures_of_the_embedded_model_are_the_same_to_the_last_pixel(overlap: bool) -> None:
    bundle = load_bundle(EMBEDDED)
    random = Random(7)
    side = bundle.pixels_per_token
    requests = [
        SequenceRequest(
            sequence_id=str(i),
            class_label=random.randrange(bundle.model_config.num_classes),
            height=side * random.randint(2, 6),
            width=side * random.randint(2, 6),
            seed=i,
            num_inference_steps=random.randint(2, 6),
            guidance_scale=random.choice((1.0, 2.0)),
            guidance_interval=(0.1, 1.0),
            sampler=("euler", "heun", "sde")[i % 3],
            quality=("exact", "balanced", "fast")[i % 3],
        )
        for i in range(6)
    ]
    config = EngineConfig(batch_invariant=True, overlap=overlap)
    with running(bundle, config) as handle:
        futures = handle.submit(requests)
        together = [future.result(PATIENCE_S).pixels for future in futures]
        for pixels, request in zip(together, requests, strict=True):
            by_itself = submit(handle, request).result(PATIENCE_S).pixels
            assert numpy.array_equal(pixels, by_itself)
