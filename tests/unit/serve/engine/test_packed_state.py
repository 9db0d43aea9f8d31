"""State follows its sequence, whoever it is packed with, and nobody writes into another's."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fit_serve.engine.packed_state import PackedState, StateStore
from fit_serve.engine.sequence import Sequence
from support.sequences import sequence_of

CPU, CHANNELS = torch.device("cpu"), 2


def store() -> StateStore:
    return StateStore(CPU, CHANNELS)


def filled(sequence: Sequence, value: float) -> Tensor:
    return torch.full((sequence.num_tokens, CHANNELS), float(value))


def add(home: PackedState, amount: float, in_place: bool) -> None:
    """Advance everything, as a step does: with new tensors, or in the old ones."""
    for name, factor in (("state", 1.0), ("memory", 10.0), ("last", 100.0), ("before", 1000.0)):
        tensor = getattr(home, name)
        if tensor is None:
            continue
        if in_place:
            tensor += factor * amount
        else:
            setattr(home, name, tensor + factor * amount)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sets(st.integers(0, 4), min_size=1).map(sorted), min_size=1, max_size=12),
    st.sets(st.integers(0, 4)),
    st.booleans(),
)
def test_everybody_keeps_what_is_theirs_through_any_memberships(
    steps: list[list[int]], keepers: set[int], in_place: bool
) -> None:
    sequences = [sequence_of(str(i), (1 + i, 2)) for i in range(5)]
    held, ran, kept = store(), [0] * 5, [0] * 5
    for step in steps:
        members = tuple(sequences[i] for i in step)
        starts = {sequences[i]: filled(sequences[i], i) for i in step if not ran[i]}
        keeps = bool(keepers & set(step))
        home = held.gather(members, starts, keeps)
        assert home.sequences == members
        assert (home.last is not None) >= keeps
        add(home, 1.0, in_place)
        for i in step:
            ran[i] += 1
            kept[i] += home.last is not None
    for i, sequence in enumerate(sequences):
        assert (sequence in held) == bool(ran[i])
        if not ran[i]:
            continue
        part = held.gather((sequence,), {}, True)
        assert torch.equal(part.state, filled(sequence, i + ran[i]))
        assert torch.equal(part.memory, filled(sequence, 10.0 * ran[i]))
        if i in keepers:
            assert part.last is not None
            assert part.before is not None
            assert torch.equal(part.last, filled(sequence, 100.0 * kept[i]))
            assert torch.equal(part.before, filled(sequence, 1000.0 * kept[i]))


def test_a_membership_that_stays_is_not_packed_again() -> None:
    a, b = sequence_of("a"), sequence_of("b", (3, 3))
    held = store()
    first = held.gather((a, b), {a: filled(a, 1), b: filled(b, 2)}, False)
    assert held.gather((a, b), {}, False) is first
    assert held.gather((a, b), {}, True) is first
    assert first.last is not None
    assert held.gather((b, a), {}, True) is not first
    assert first.slices == (slice(0, 6), slice(6, 15))


def test_predictions_begin_as_nothing() -> None:
    a = sequence_of("a")
    home = store().gather((a,), {a: filled(a, 1)}, True)
    assert home.last is not None
    assert home.before is not None
    assert not home.last.any()
    assert not home.before.any()


def test_who_is_left_behind_gets_memory_of_its_own() -> None:
    a, b = sequence_of("a"), sequence_of("b")
    held = store()
    old = held.gather((a, b), {a: filled(a, 1), b: filled(b, 2)}, True)
    held.gather((a,), {}, True)
    old.state.fill_(9)
    assert torch.equal(held.take(b), filled(b, 2))


def test_what_is_taken_or_forgotten_is_gone() -> None:
    a, b, c = (sequence_of(name) for name in "abc")
    held = store()
    held.gather((a, b, c), {s: filled(s, 3) for s in (a, b, c)}, False)
    assert torch.equal(held.take(a), filled(a, 3))
    held.forget([b, sequence_of("never seen")])
    assert [s in held for s in (a, b, c)] == [False, False, True]
    with pytest.raises(KeyError):
        held.take(a)
    assert torch.equal(held.gather((c,), {}, False).state, filled(c, 3))


def test_one_that_was_dropped_in_between_runs_on_zeros_and_disturbs_nobody() -> None:
    a, b = sequence_of("a"), sequence_of("b", (2, 2))
    held = store()
    held.gather((a, b), {a: filled(a, 1), b: filled(b, 2)}, False)
    held.forget([a])
    home = held.gather((a, b), {}, False)
    assert torch.equal(home.part(b).state, filled(b, 2))
    held.forget([a])
    home = held.gather((b,), {}, False)
    assert torch.equal(home.state, filled(b, 2))
