"""Who may share a step: each rule keeps its limits and leaves out nobody without a reason."""

from collections.abc import Collection
from collections.abc import Sequence as Items

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fit_serve.engine.batching import (
    BATCHINGS,
    StepLimits,
    equal_shape_dynamic,
    equal_shape_step,
    packed,
    padded_mixed,
    serial,
)
from fit_serve.engine.config import BATCHING
from fit_serve.engine.sequence import Sequence
from support.sequences import planned, requests, sequence_of

ROOMY = 10**9


@st.composite
def lines(draw: st.DrawFn) -> tuple[list[Sequence], list[Sequence]]:
    """A line of sequences, and who of them has begun: some way into their plan."""
    line = [planned(r) for r in draw(st.lists(requests(), min_size=1, max_size=16))]
    begun = [s for s in line if draw(st.booleans())]
    for sequence in begun:
        for _ in range(draw(st.integers(0, sequence.remaining_turns - 1))):
            sequence.advance(sequence.next_turn())
    return line, begun


limits_of_steps = st.builds(StepLimits, st.integers(1, 200), st.integers(1, 8), st.integers(1, 400))
laws = settings(max_examples=50, deadline=None)


def tokens_of(sequences: Collection[Sequence]) -> int:
    return sum(s.num_tokens * s.num_branches for s in sequences)


def state_of(sequences: Collection[Sequence]) -> int:
    return sum(s.state_tokens for s in sequences)


def test_every_batching_of_the_settings_has_its_rule() -> None:
    assert tuple(BATCHINGS) == BATCHING


@laws
@given(lines(), limits_of_steps, st.sampled_from(BATCHING))
def test_somebody_runs_and_nobody_twice_and_all_stand_in_the_line(
    asked: tuple[list[Sequence], list[Sequence]], limits: StepLimits, batching: str
) -> None:
    line, begun = asked
    chosen = BATCHINGS[batching](line, begun, limits)
    assert chosen
    assert [s for s in line if s in chosen] == chosen


@laws
@given(lines(), limits_of_steps, st.sampled_from(("packed", "padded-mixed", "equal-shape-step")))
def test_a_step_keeps_its_limits_or_is_of_one(
    asked: tuple[list[Sequence], list[Sequence]], limits: StepLimits, batching: str
) -> None:
    line, begun = asked
    chosen = BATCHINGS[batching](line, begun, limits)
    assert len(chosen) <= limits.sequences
    assert len(chosen) == 1 or tokens_of(chosen) <= limits.tokens
    new = [s for s in chosen if s not in begun]
    if new and begun:
        assert state_of(begun) + state_of(new) <= limits.state_tokens
    elif len(new) > 1:
        assert state_of(new) <= limits.state_tokens


@laws
@given(lines(), limits_of_steps)
def test_packed_leaves_nobody_out_who_fits_behind_those_before_it(
    asked: tuple[list[Sequence], list[Sequence]], limits: StepLimits
) -> None:
    line, begun = asked
    chosen = packed(line, begun, limits)
    held = state_of(begun)
    no_state = False  # for the first newcomer that finds none, and so for all behind it
    for place, sequence in enumerate(line):
        before = [s for s in chosen if s in line[:place]]
        if sequence not in begun:
            no_state |= held > 0 and held + sequence.state_tokens > limits.state_tokens
            held += 0 if no_state else sequence.state_tokens
        if sequence in begun or not no_state:
            is_full = len(before) == limits.sequences
            no_room = bool(before) and tokens_of([*before, sequence]) > limits.tokens
            assert (sequence in chosen) == (not is_full and not no_room)
        else:
            assert sequence not in chosen


def test_who_finds_no_room_for_its_state_is_not_passed_by_smaller_newcomers() -> None:
    begun = sequence_of("begun", (4, 4), steps=20)  # 32 tokens of state
    large, small = sequence_of("large", (6, 6)), sequence_of("small", (1, 1))
    limits = StepLimits(ROOMY, 8, 100)
    assert packed([begun, large, small], [begun], limits) == [begun]
    assert packed([begun, small, large], [begun], limits) == [begun, small]
    assert packed([large, small], [], limits) == [large, small]


def test_the_search_for_a_small_one_ends_somewhere() -> None:
    limits = StepLimits(20, 1000, ROOMY)
    first, small = sequence_of("first", (2, 4), scale=1.0), sequence_of("small", (1, 1), scale=1.0)
    large = [sequence_of(str(i), (4, 4), scale=1.0) for i in range(1000)]
    assert packed([first, *large[:60], small], [], limits) == [first, small]
    assert packed([first, *large, small], [], limits) == [first]


@laws
@given(lines(), limits_of_steps)
def test_serial_runs_who_has_begun_to_its_end(
    asked: tuple[list[Sequence], list[Sequence]], limits: StepLimits
) -> None:
    line, begun = asked
    assert serial(line, begun, limits) == [begun[0] if begun else line[0]]


@laws
@given(lines(), limits_of_steps)
def test_equal_shapes_share_a_step_with_the_earliest_that_has_begun(
    asked: tuple[list[Sequence], list[Sequence]], limits: StepLimits
) -> None:
    line, begun = asked
    chosen = equal_shape_step(line, begun, limits)
    assert {s.grid for s in chosen} == {(begun[0] if begun else line[0]).grid}


@laws
@given(lines(), limits_of_steps)
def test_in_a_dynamic_batch_all_are_alike_and_nobody_joins(
    asked: tuple[list[Sequence], list[Sequence]], limits: StepLimits
) -> None:
    line, begun = asked
    chosen = equal_shape_dynamic(line, begun, limits)
    if begun:
        assert chosen == begun
        return
    assert chosen[0] is line[0]
    assert len({(s.grid, s.evaluations, s.guidance_scales) for s in chosen}) == 1
    assert len(chosen) <= limits.sequences
    assert len(chosen) == 1 or sum(s.max_tokens for s in chosen) <= limits.tokens


@laws
@given(lines(), limits_of_steps)
def test_padded_to_the_longest_the_padding_counts(
    asked: tuple[list[Sequence], list[Sequence]], limits: StepLimits
) -> None:
    line, begun = asked
    chosen = padded_mixed(line, begun, limits)
    longest = max(s.num_tokens for s in chosen)
    assert len(chosen) == 1 or longest * sum(s.num_branches for s in chosen) <= limits.tokens


@pytest.mark.parametrize(
    ("tokens", "expected"), [(79, "0134"), (80, "012"), (112, "0123"), (144, "01234")]
)
def test_a_long_one_makes_the_others_as_long(tokens: int, expected: str) -> None:
    line: Items[Sequence] = [
        sequence_of("0", (2, 2), scale=1.0),
        sequence_of("1", (2, 2), scale=2.0),
        sequence_of("2", (4, 4), scale=2.0),  # 5 branches of 16 by now
        sequence_of("3", (2, 2), scale=2.0),
        sequence_of("4", (1, 1), scale=2.0),
    ]
    chosen = padded_mixed(line, [], StepLimits(tokens, 8, ROOMY))
    assert "".join(s.sequence_id for s in chosen) == expected


def test_a_dynamic_batch_has_room_for_its_most_expensive_evaluation() -> None:
    line = [sequence_of(str(i), (2, 4), interval=(0.0, 0.5)) for i in range(5)]  # 8, then 16 tokens
    assert equal_shape_dynamic(line, [], StepLimits(32, 8, ROOMY)) == line[:2]
