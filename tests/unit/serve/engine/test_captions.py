"""What the engine keeps of captions: in use it stays, and it changes no picture."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from fit_models.bundle import Bundle, load_bundle
from fit_models.captions import CaptionStates
from fit_models.families import TextNetwork
from fit_serve.engine.caption import Caption
from fit_serve.engine.caption_cache import CaptionCache
from fit_serve.engine.config import EngineConfig
from fit_serve.engine.runner import Runner
from fit_serve.request import SequenceRequest
from support.sequences import planned, request_of
from support.stepping import Visit, alone, assert_close, finish, read, step, together
from support.toy_families import TEXT_FAMILIES, make_family_bundle
from support.toy_text import CHANNELS

LONG = "two kites over a teapot, at dawn"


@pytest.fixture(scope="module", params=TEXT_FAMILIES)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(str(make_family_bundle(tmp_path_factory.mktemp("bundle"), request.param)))


def network_of(bundle: Bundle) -> TextNetwork:
    assert isinstance(bundle.network, TextNetwork)
    return bundle.network


def asked(number: int, prompt: str, negative: str = "", scale: float = 2.0) -> SequenceRequest:
    grid = ((2, 3), (4, 4), (1, 5))[number % 3]
    return request_of(
        str(number), grid, 4, scale, seed=number, prompt=prompt, negative_prompt=negative
    )


def visits() -> list[Visit]:
    return [
        Visit(asked(0, "a heron", "fog")),
        Visit(asked(1, LONG), begins=1),
        Visit(asked(2, "", scale=1.0)),
        Visit(asked(3, "a heron", "fog"), begins=2, sits_out=frozenset({3})),
        Visit(asked(4, "fog", "a heron"), begins=1),
    ]


@pytest.mark.parametrize("cache_bytes", [1, 2**20])
@pytest.mark.parametrize("rows", [1, 3, 1000])
def test_no_cache_however_small_changes_a_picture(bundle: Bundle, cache_bytes: int, rows: int):
    config = EngineConfig(
        caption_cache_bytes=cache_bytes, modulation_cache_rows=rows, rope_cache_tokens=20
    )
    for visit, latent in zip(visits(), together(bundle, visits(), config), strict=True):
        assert_close(latent, alone(bundle, visit.request), 2e-5)


def test_padding_to_buckets_changes_no_picture(bundle: Bundle):
    config = EngineConfig(token_buckets=(64, 128, 256))
    for visit, latent in zip(visits(), together(bundle, visits(), config), strict=True):
        assert_close(latent, alone(bundle, visit.request), 2e-5)


def test_batch_invariant_pictures_are_the_same_bit_for_bit(bundle: Bundle):
    config = EngineConfig(batch_invariant=True, caption_cache_bytes=1)
    for visit, latent in zip(visits(), together(bundle, visits(), config), strict=True):
        assert torch.equal(latent, alone(bundle, visit.request, EngineConfig(batch_invariant=True)))


def test_prompts_and_negative_prompts_change_a_picture_where_they_are_used(bundle: Bundle):
    base = asked(0, "a heron", "fog")
    picture = alone(bundle, base)
    for other in (replace(base, prompt=LONG), replace(base, negative_prompt="")):
        assert (alone(bundle, other) - picture).abs().max() > 1e-3
    plain = replace(base, guidance_scale=1.0)
    unguided = [alone(bundle, replace(plain, negative_prompt=text)) for text in ("fog", "")]
    assert torch.equal(*unguided)


def test_states_are_computed_once_for_all_who_share_them(bundle: Bundle):
    runner = Runner(bundle, EngineConfig())
    first = read(bundle, planned(asked(0, "a heron"), None, bundle.model_config))
    second = planned(asked(3, "a heron"), None, bundle.model_config)
    second.captions = first.captions
    finish(runner, first, beside=[second])
    assert runner.captions is not None
    assert (runner.captions.misses, runner.captions.hits) == (2, 2)


def test_joined_captions_and_the_batch_are_made_anew_only_when_something_changes(bundle: Bundle):
    runner = Runner(bundle, EngineConfig())
    model = bundle.model_config
    request = request_of("a", (2, 3), 6, 2.0, prompt="a heron")
    small = read(bundle, planned(request, None, model))
    seen = []
    for _ in range(3):
        prepared = runner.prepare([small])
        runner.execute(prepared)
        small.advance(small.next_turn())
        seen.append(prepared.packs[0].batch)
    assert len(set(seen)) == 1
    assert runner.captions is not None
    assert runner.captions.joined(seen[0]) is runner.captions.joined(seen[0])
    other = read(bundle, planned(asked(1, LONG), None, model))
    assert runner.prepare([small, other]).packs[0].batch is not seen[0]


def test_the_tables_of_a_large_picture_change_once_in_its_life_and_the_batch_with_them(
    bundle: Bundle,
):
    if type(bundle.network).__name__ != "LuminaNext":
        pytest.skip("its tables depend on the size alone")
    runner = Runner(bundle, EngineConfig())
    request = request_of("a", (4, 4), 8, 2.0, prompt="a heron")
    large = read(bundle, planned(request, None, bundle.model_config))
    batches = []
    while not large.is_finished:
        batches.append(runner.prepare([large]).packs[0].batch)
        step(runner, [large])
    changes = [a is not b for a, b in pairwise(batches)]
    assert sum(changes) == 1
    assert len({batch.tables for batch in batches}) == 2
    at = changes.index(True) + 1
    assert (
        large.evaluations[at - 1].network_timestep < 0.3 <= large.evaluations[at].network_timestep
    )


def test_states_in_use_stay_and_the_longest_unused_go_first(bundle: Bundle):
    cache = CaptionCache(network_of(bundle), max_bytes=1)
    captions = [Caption(f"p{i}", torch.randn(2 + i, CHANNELS)) for i in range(4)]
    users = []
    for caption in captions:
        user = planned(asked(0, caption.prompt), None, bundle.model_config)
        user.captions = (caption,)
        users.append(user)
        cache.hold([user])
    assert cache.misses == 4
    pooled = cache.pooled([c.caption_id for c in captions])
    assert pooled.shape == (4, network_of(bundle).config.condition_size)
    before = cache.num_bytes
    cache.forget(users[:3])
    cache.hold(users)  # the first three begin again: still there, nothing was needed meanwhile
    assert (cache.misses, cache.hits) == (4, 3)
    cache.forget(users[:3])
    another = planned(asked(0, "q"), None, bundle.model_config)
    another.captions = (captions[0],)
    cache.hold([another])
    assert cache.num_bytes < before
    assert torch.equal(cache.pooled([captions[3].caption_id]), pooled[3:])
    with pytest.raises(KeyError):
        cache.pooled([captions[1].caption_id])


def test_bytes_are_those_of_the_states(bundle: Bundle):
    cache = CaptionCache(network_of(bundle), max_bytes=2**20)
    user = planned(asked(0, "p"), None, bundle.model_config)
    user.captions = (Caption("p", torch.randn(3, CHANNELS)),)
    with torch.inference_mode():
        cache.hold([user])
        states: CaptionStates = network_of(bundle).caption_states(user.captions[0].features_YC, [3])
    tensors = (states.pooled, *states.keys, *states.values)
    assert cache.num_bytes == sum(t.numel() * t.element_size() for t in tensors)
