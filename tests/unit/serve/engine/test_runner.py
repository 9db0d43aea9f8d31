"""Laws of the runner: a sequence does not notice its neighbours, nor how it was packed."""

from dataclasses import replace
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fit_models.bundle import Bundle
from fit_models.diffusion.sampler import SAMPLERS
from fit_serve.engine import packer as packer_module
from fit_serve.engine.buckets import default_buckets
from fit_serve.engine.config import EngineConfig
from fit_serve.engine.packer import StepReport
from fit_serve.engine.reuse_rule import PlannedReuse
from fit_serve.engine.runner import Runner
from fit_serve.engine.sequence import Sequence
from fit_serve.engine.step_cache import StepCache
from support.sequences import planned, request_of, requests, sequence_of
from support.stepping import Visit, alone, assert_close, by_the_book, finish, step, together

few = settings(max_examples=12, deadline=None)
step_caches = st.builds(
    StepCache, rule=st.sampled_from(("plan", "change")), order=st.sampled_from((0, 1))
)


def traffics(longest: int = 5) -> st.SearchStrategy[list[Visit]]:
    visits = st.builds(
        Visit,
        requests(max_side=5, max_steps=8),
        st.integers(0, 5),
        st.frozensets(st.integers(0, 9), max_size=4),
    )
    return st.lists(visits, min_size=2, max_size=longest)


# --- by the book --------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
@pytest.mark.parametrize(("scale", "interval"), [(1.0, (0.0, 1.0)), (3.0, (0.3, 0.8))])
def test_a_sequence_runs_as_the_book_says(
    bundle: Bundle, sampler: str, scale: float, interval: tuple[float, float]
) -> None:
    request = request_of("a", (3, 5), 5, scale, interval, sampler)
    assert_close(alone(bundle, request), by_the_book(bundle, request))


@pytest.mark.parametrize("rule", ["plan", "change"])
@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("sampler", ["euler", "heun", "midpoint"])
def test_what_is_reused_is_as_the_book_says(
    bundle: Bundle, rule: str, order: int, sampler: str
) -> None:
    cache = StepCache(rule, order)
    request = request_of("a", (3, 4), 14, 2.0, (0.2, 0.9), sampler, quality="fast")
    sequence = planned(request, cache)
    finish(Runner(bundle, EngineConfig()), sequence)
    assert sequence.turns < len(sequence.evaluations), "nothing was reused"
    latent = alone(bundle, request, step_cache=cache)
    assert_close(latent, by_the_book(bundle, request, cache), 1e-4)
    exact = alone(bundle, replace(request, quality="exact"))
    assert (latent - exact).abs().max() > 1e-3


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.2, 0.7)])
def test_a_prediction_at_a_repeated_noise_level_replaces_the_last(
    bundle: Bundle, order: int, interval: tuple[float, float]
) -> None:
    """Heun evaluates a level twice; a line through both would have no direction."""
    request, cache = request_of("a", (2, 3), 10, 2.0, interval, "heun"), StepCache("plan", order)
    scales = planned(request).guidance_scales
    wanted = [True, True, True, False, False, True, True, True, False, False] * 2
    changes = [i > 0 and scales[i] != scales[i - 1] for i in range(20)]
    rule = PlannedReuse(tuple(w or c for w, c in zip(wanted, changes, strict=True)))
    sequence = planned(request, cache)
    sequence.rule = rule
    beside = [sequence_of("b", (2, 3), steps=20), sequence_of("c", (3, 3), 12, quality="fast")]
    latent = finish(Runner(bundle, EngineConfig()), sequence, beside)
    assert_close(latent, by_the_book(bundle, request, cache, rule), 1e-4)


def test_order_and_quality_and_rule_each_change_the_picture(bundle: Bundle) -> None:
    request = request_of(steps=16, grid=(3, 3), quality="fast")
    latents = [
        alone(bundle, request, step_cache=StepCache("plan", 1)),
        alone(bundle, request, step_cache=StepCache("plan", 0)),
        alone(bundle, request, step_cache=StepCache("change", 1)),
        alone(bundle, replace(request, quality="balanced")),
        alone(bundle, replace(request, quality="exact")),
    ]
    for i, one in enumerate(latents):
        for other in latents[:i]:
            assert (one - other).abs().max() > 1e-4


# --- neighbours ---------------------------------------------------------------------------------


@few
@given(traffics(6), step_caches)
def test_neighbours_and_when_they_come_and_sit_out_change_nothing(
    bundle: Bundle, traffic: list[Visit], step_cache: StepCache
) -> None:
    latents = together(bundle, traffic, step_cache=step_cache)
    for latent, visit in zip(latents, traffic, strict=True):
        assert_close(latent, alone(bundle, visit.request, step_cache=step_cache), 2e-5)


@few
@given(traffics(), st.sampled_from((EngineConfig(batching="padded-mixed"), None)))
def test_padding_changes_nothing(
    bundle: Bundle, traffic: list[Visit], config: EngineConfig | None
) -> None:
    """To buckets, or each to the longest."""
    padded = together(bundle, traffic, config or EngineConfig(token_buckets=(64, 128, 256)))
    for latent, other in zip(padded, together(bundle, traffic), strict=True):
        assert_close(latent, other, 2e-5)


@pytest.mark.parametrize("batch_invariant", [False, True])
@pytest.mark.parametrize(("rows", "seed"), [(1, 0), (24, 1), (40, 2)])
def test_small_caches_never_give_what_is_of_another(
    bundle: Bundle, batch_invariant: bool, rows: int, seed: int
) -> None:
    """Many resolutions, everybody sits out now and then: rows move, and what was told is stale."""
    random = Random(seed)
    grids = [(r, c) for r in range(1, 5) for c in range(1, 5)]
    traffic = [
        Visit(
            request_of(str(i), grid, random.randint(2, 6), sampler="midpoint", label=i % 3),
            random.randrange(6),
            frozenset(random.sample(range(20), 10)),
        )
        for i, grid in enumerate(random.sample(grids, 10))
    ]
    tiny = EngineConfig(
        rope_cache_tokens=rows, modulation_cache_rows=3, batch_invariant=batch_invariant
    )
    for latent, visit in zip(together(bundle, traffic, tiny), traffic, strict=True):
        assert_close(latent, alone(bundle, visit.request))


def test_seed_class_scale_and_sampler_each_change_the_picture(bundle: Bundle) -> None:
    request = request_of()
    latent = alone(bundle, request)
    assert torch.equal(latent, alone(bundle, request))
    for change in (
        {"seed": 2},
        {"class_label": 0},
        {"guidance_scale": 1.0},
        {"guidance_interval": (0.0, 0.5)},
        {"sampler": "heun"},
        {"num_inference_steps": 5},
    ):
        other = alone(bundle, replace(request, **change))
        assert (latent - other).abs().max() > 1e-2, change


def test_neighbours_that_leave_in_the_middle_change_nothing(bundle: Bundle) -> None:
    """Noise is drawn at every step here: a draw for somebody else would be seen."""
    request = request_of("stays", (3, 3), 6, sampler="sde")
    runner, stays = Runner(bundle, EngineConfig()), planned(request)
    leaves = [planned(request_of(str(i), (3, 3), 6, seed=i, sampler="sde")) for i in range(3)]
    finished: dict[Sequence, Tensor] = {}
    while not stays.is_finished:
        finished = step(runner, [*leaves, stays]).finished
        if leaves:
            runner.forget([leaves.pop()])
    assert_close(finished[stays], alone(bundle, request))


# --- what is kept -------------------------------------------------------------------------------


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the memberships that were described."""
    counted: list[int] = []
    build = packer_module.build_batch

    def counting(sequences: list[Sequence], *args: object) -> object:
        counted.append(len(sequences))
        return build(sequences, *args)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(packer_module, "build_batch", counting)
    return counted


def test_a_membership_is_described_and_packed_once(bundle: Bundle, builds: list[int]) -> None:
    runner = Runner(bundle, EngineConfig())
    a, b = sequence_of("a", (2, 3), steps=8), sequence_of("b", (3, 2), steps=4)
    homes = []
    for _ in range(4):
        step(runner, [a, b])
        homes.append(runner._store._homes[a])
    while not a.is_finished:
        step(runner, [a])
        homes.append(runner._store._homes.get(a, homes[-1]))
    assert builds == [2, 1]
    assert [home is homes[0] for home in homes] == [True] * 4 + [False] * 4
    assert len(set(map(id, homes[4:]))) == 1


def test_it_is_described_again_where_guidance_begins_and_ends(
    bundle: Bundle, builds: list[int]
) -> None:
    runner = Runner(bundle, EngineConfig())
    a = sequence_of("a", steps=8, interval=(0.3, 0.8))
    tokens = [step(runner, [a]).report.real_tokens for _ in range(8)]
    assert tokens == [6, 6, 12, 12, 12, 12, 6, 6]
    assert builds == [1, 1, 1]


def test_the_report_counts_what_was_run(bundle: Bundle) -> None:
    runner = Runner(bundle, EngineConfig(token_buckets=(32, 64)))
    reuses = sequence_of("c", (4, 4), steps=9, scale=1.0, quality="fast")
    reuses.rule = PlannedReuse((True, False, False) * 3)
    sequences = [sequence_of("a", (2, 3)), sequence_of("b", (2, 3), scale=1.0), reuses]
    assert step(runner, sequences).report == StepReport(
        real_tokens=12 + 6 + 16,
        padded_tokens=64,
        num_sequences=3,
        num_resolutions=2,
        num_reused=2,
    )


@pytest.mark.parametrize("batch_invariant", [False, True])
def test_nothing_is_kept_of_who_is_gone(bundle: Bundle, batch_invariant: bool) -> None:
    runner = Runner(bundle, EngineConfig(batch_invariant=batch_invariant))
    a, b, never_ran = sequence_of("a", steps=1), sequence_of("b"), sequence_of("c")
    assert list(step(runner, [a, b]).finished) == [a]
    runner.forget([b, never_ran])
    runner.release()
    assert runner._store._homes == {}
    assert runner._packer._generators == {}
    assert not any(a in batch.sequences for batch in runner._packer._batches.values())


def test_what_is_forgotten_goes_with_the_next_step_and_not_before(bundle: Bundle) -> None:
    """A step under way may still hold it."""
    runner = Runner(bundle, EngineConfig())
    gone, stays = sequence_of("gone"), sequence_of("stays")
    step(runner, [gone, stays])
    runner.forget([gone])
    assert gone in runner._store
    step(runner, [stays])
    assert gone not in runner._store
    assert stays in runner._store


def test_a_step_planned_for_one_that_was_forgotten_disturbs_nobody(bundle: Bundle) -> None:
    """As in the overlapped loop: planned before the last step's failure was known."""
    request = request_of("stays", (3, 4), 6, sampler="sde-heun")
    runner, stays = Runner(bundle, EngineConfig()), planned(request)
    victim = sequence_of("victim", (3, 4))
    step(runner, [stays, victim])
    turns = {s: s.next_turn() for s in (stays, victim)}
    runner.forget([victim])
    prepared = runner.prepare([stays, victim])
    for sequence, turn in turns.items():
        sequence.advance(turn)
    runner.forget([victim])
    runner.execute(prepared)
    assert_close(finish(runner, stays), alone(bundle, request))
    runner.release()
    assert victim not in runner._store


@pytest.mark.parametrize("batch_invariant", [False, True])
@pytest.mark.parametrize("quality", ["exact", "balanced"])
def test_a_step_that_fails_leaves_the_others_state_alone(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, batch_invariant: bool, quality: str
) -> None:
    config = EngineConfig(batch_invariant=batch_invariant)
    request = request_of("stays", (3, 4), 6, sampler="midpoint", quality=quality)
    runner, stays = Runner(bundle, config), planned(request)
    step(runner, [stays])
    victim = sequence_of("victim", (5, 5))
    prepared = runner.prepare([victim])
    victim.advance(victim.next_turn())
    with monkeypatch.context() as patch:
        patch.setattr(bundle.network, "denoise", _out_of_memory)
        with pytest.raises(MemoryError):
            runner.execute(prepared)
    runner.forget([victim])
    assert_close(finish(runner, stays), alone(bundle, request))


def _out_of_memory(*args: object) -> Tensor:
    raise MemoryError


def test_by_default_only_a_gpu_pads() -> None:
    assert default_buckets(torch.device("cpu")) == ()
    buckets = default_buckets(torch.device("cuda"))
    assert list(buckets) == sorted(set(buckets))
    assert (buckets[0], buckets[-1]) == (256, 32_768)
