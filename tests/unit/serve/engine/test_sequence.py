"""A sequence is its plan: made from the request alone, and true about the work it stands for."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fit_serve.engine.reuse_rule import PlannedReuse
from fit_serve.engine.sequence import Sequence, plan_sequence
from fit_serve.engine.step_cache import RULES, StepCache
from fit_serve.request import NUM_SEEDS, SequenceRequest
from support.sequences import (
    PIXELS_PER_TOKEN,
    planned,
    request_of,
    requests,
    sequence_of,
    turns_of,
)

Changes = Callable[[int], float]

step_caches = st.builds(StepCache, rule=st.sampled_from(RULES), order=st.sampled_from((0, 1)))
changes = st.lists(st.floats(0.0, 1.0), min_size=64, max_size=64).map(
    lambda rates: rates.__getitem__
)
asked = requests(max_steps=15)


@settings(max_examples=60, deadline=None)
@given(asked, step_caches, changes)
def test_turns_visit_every_evaluation_once(
    request: SequenceRequest, step_cache: StepCache, changes: Changes
) -> None:
    sequence = planned(request, step_cache)
    visited = []
    for turn in turns_of(sequence, changes):
        visited += [turn.position, *(reuse.position for reuse in turn.reused)]
        assert turn.end == sequence.position == len(visited)
        assert turn.branches == (2 if sequence.guidance_scales[turn.position] != 1.0 else 1)
    assert visited == list(range(len(sequence.evaluations)))


@settings(max_examples=60, deadline=None)
@given(asked, step_caches)
def test_the_work_ahead_is_what_a_run_takes(
    request: SequenceRequest, step_cache: StepCache
) -> None:
    assume(step_cache.rule == "plan" or request.quality == "exact")
    sequence = planned(request, step_cache)
    ahead = [_ahead(sequence)]
    needs = []
    for turn in turns_of(sequence):
        needs.append(sequence.num_tokens * turn.branches)
        ahead.append(_ahead(sequence))
    for done, (turns, remaining, largest) in enumerate(ahead):
        assert turns == len(needs) - done
        assert remaining == sum(needs[done:])
        assert largest == max(needs[done:], default=sequence.num_tokens)
    if request.quality == "exact":
        assert len(needs) == len(sequence.evaluations)


@settings(max_examples=40, deadline=None)
@given(requests(max_steps=15, qualities=("balanced", "fast")), changes)
def test_a_rule_that_watches_never_promises_less_work_than_comes(
    request: SequenceRequest, changes: Changes
) -> None:
    sequence = planned(request, StepCache("change"))
    ahead = [_ahead(sequence)]
    needs = []
    for turn in turns_of(sequence, changes):
        needs.append(sequence.num_tokens * turn.branches)
        ahead.append(_ahead(sequence))
    for done, (turns, remaining, largest) in enumerate(ahead):
        assert turns >= len(needs) - done
        assert remaining >= sum(needs[done:])
        assert largest >= max(needs[done:], default=0)
    assert ahead[-1] == (0, 0, sequence.num_tokens)


def _ahead(sequence: Sequence) -> tuple[int, int, int]:
    return sequence.remaining_turns, sequence.remaining_tokens, sequence.max_tokens


@settings(max_examples=60, deadline=None)
@given(
    requests(max_steps=15, qualities=("balanced", "fast")),
    step_caches,
    changes,
    st.none() | st.lists(st.booleans(), min_size=30, max_size=30),
)
def test_what_is_reused_lies_on_the_line_through_the_last_two_levels(
    request: SequenceRequest, step_cache: StepCache, changes: Changes, plan: list[bool] | None
) -> None:
    """A prediction linear in the noise level, another one at each scale, stands in for tensors."""
    sequence = planned(request, step_cache)
    scales, sigmas = sequence.guidance_scales, [e.sigma for e in sequence.evaluations]
    if plan is not None and sequence.rule is not None:  # any plan that keeps the rules
        sequence.rule = PlannedReuse(
            tuple(i == 0 or plan[i] or scales[i] != scales[i - 1] for i in range(len(scales)))
        )

    def linear(scale: float, sigma: float) -> float:
        return 3.0 * scale + (7.0 - scale) * sigma

    last = before = 1e6  # what is kept of predictions, as a device keeps it
    levels: list[float] = []  # distinct noise levels computed at the present scale
    for turn in turns_of(sequence, changes):
        scale, sigma = scales[turn.position], sigmas[turn.position]
        if turn.position and scales[turn.position - 1] != scale:
            levels = []
        is_repeated = bool(levels) and levels[-1] == sigma
        if turn.reused:  # for a sequence that keeps its predictions
            assert turn.shifts != is_repeated
        before, last = (last if turn.shifts else before), linear(scale, sigma)
        levels += [] if is_repeated else [sigma]
        for reuse in turn.reused:
            assert scales[reuse.position] == scale, "across a change of the scale"
            read = reuse.last * last + reuse.before * before
            if step_cache.order == 1 and len(levels) > 1:
                assert read == pytest.approx(linear(scale, sigmas[reuse.position]), abs=1e-6)
            else:
                assert (reuse.last, reuse.before) == (1.0, 0.0)


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.3, 0.7)])
def test_at_a_repeated_noise_level_heuns_prediction_takes_the_place_of_the_last(
    interval: tuple[float, float],
) -> None:
    """No plan of ours computes both, for the error of the second is taken for nothing."""
    sequence = planned(request_of(steps=10, interval=interval, sampler="heun"))
    sequence.rule = PlannedReuse((True, True, True, False, True, True, True, True, False, True) * 2)
    sigmas = [e.sigma for e in sequence.evaluations]
    turns = list(turns_of(sequence))
    for turn, next_turn in pairwise(turns):
        assert next_turn.shifts == (sigmas[next_turn.position] != sigmas[turn.position])
    repeated = [turn for turn in turns if not turn.shifts]
    assert len(repeated) > 3
    read = [reuse for turn in repeated for reuse in turn.reused]
    assert read
    assert any(reuse.before for reuse in read), "it goes on along the line of two levels"


@pytest.mark.parametrize(("quality", "kept"), [("exact", 2), ("balanced", 4), ("fast", 4)])
def test_who_reuses_predictions_holds_two_of_them(quality: str, kept: int) -> None:
    assert sequence_of(steps=20, quality=quality).state_tokens == kept * 6


@pytest.mark.parametrize("sampler", ["sde", "sde-heun"])
@pytest.mark.parametrize("rule", RULES)
def test_where_fresh_noise_enters_everything_is_computed(sampler: str, rule: str) -> None:
    sequence = planned(request_of(steps=20, sampler=sampler, quality="fast"), StepCache(rule))
    assert sequence.rule is None
    assert sequence.remaining_turns == len(sequence.evaluations)


def test_without_guidance_there_is_one_branch() -> None:
    assert sequence_of(scale=1.0).num_branches == 1
    assert sequence_of(scale=1.0).remaining_tokens == 4 * 6


def test_outside_its_interval_guidance_costs_nothing() -> None:
    sequence = sequence_of(steps=4, scale=3.0, interval=(0.4, 0.8))  # sigmas 1, 3/4, 1/2, 1/4
    assert sequence.guidance_scales == (1.0, 3.0, 3.0, 1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 17}, "height is 17; it must be a multiple of 16"),
        ({"width": 0}, "width is 0; it must be a multiple of 16"),
        ({"seed": -1}, "seed is -1; it must be in 0..9223372036854775807"),
        ({"seed": NUM_SEEDS}, "seed is 9223372036854775808"),
        ({"sampler": "dopri5"}, "sampler 'dopri5' is unknown"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"guidance_interval": (0.6, 0.5)}, "guidance_interval is"),
        ({"quality": "best"}, "quality 'best' is unknown; known: exact, balanced, fast"),
    ],
)
def test_what_cannot_be_planned_is_refused(change: dict[str, object], message: str) -> None:
    asked = replace(request_of(), **change)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=message):
        plan_sequence(asked, PIXELS_PER_TOKEN)
