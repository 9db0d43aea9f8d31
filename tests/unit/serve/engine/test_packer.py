"""The host's half of a step: all that the device is told, known before it has done the last one."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fit_models.config import RopeConfig
from fit_models.rope import rope_table
from fit_serve.engine.packer import Packer, PreparedStep
from fit_serve.engine.reuse_rule import PlannedReuse
from fit_serve.engine.rope_cache import RopeCache
from fit_serve.engine.sequence import Sequence
from fit_serve.engine.step_cache import StepCache
from fit_serve.request import SequenceRequest
from support.sequences import planned, request_of, requests, sequence_of

CHANNELS, NULL, HALF = 2, 1000, 4


def rope_of(num_rows: int = 400) -> RopeCache:
    return RopeCache(
        lambda r, c: rope_table(r, c, 2 * HALF, RopeConfig()),
        num_rows,
        (HALF, HALF),
        torch.device("cpu"),
    )


def packer_of(shares_packs: bool = True, num_rows: int = 400) -> Packer:
    return Packer(rope_of(num_rows), CHANNELS, NULL, shares_packs=shares_packs)


def prepare(packer: Packer, sequences: list[Sequence]) -> PreparedStep:
    """And advance, as the engine does; finished ones are forgotten."""
    turns = {s: s.next_turn() for s in sequences}
    step = packer.prepare(sequences)
    for sequence, turn in turns.items():
        assert turn.position == sequence.position, "preparing moves nobody"
        sequence.advance(turn)
    packer.forget(s for s in sequences if s.is_finished)
    return step


traffics = st.lists(requests(max_steps=8), min_size=1, max_size=5)


@pytest.mark.parametrize("shares_packs", [True, False])
@settings(max_examples=25, deadline=None)
@given(traffics)
def test_rows_keys_and_ends_are_those_of_each_turn(
    shares_packs: bool, asked: list[SequenceRequest]
) -> None:
    packer, everybody = packer_of(shares_packs), [planned(request) for request in asked]
    while running := [s for s in everybody if not s.is_finished]:
        turns = {s: s.next_turn() for s in running}
        step = prepare(packer, running)
        members = [s for pack in step.packs for s in pack.batch.sequences]
        assert sorted(map(id, members)) == sorted(map(id, running))
        assert len(step.packs) == (1 if shares_packs else len(running))
        assert step.report.num_sequences == len(running)
        assert step.report.num_reused == sum(len(turn.reused) for turn in turns.values())
        assert step.report.real_tokens == sum(s.num_tokens * turns[s].branches for s in running)
        for pack in step.packs:
            assert set(pack.finishing) == {s for s in pack.batch.sequences if s.is_finished}
            branches = iter(pack.row_of_branch.tolist())
            assert len(set(pack.keys)) == len(pack.keys)
            for sequence, row in zip(pack.batch.sequences, pack.rows_S8, strict=True):
                turn = turns[sequence]
                evaluation = sequence.evaluations[turn.position]
                scale = sequence.guidance_scales[turn.position]
                assert torch.equal(row, torch.tensor([*evaluation.coefficients, scale]))
                timestep = 1.0 - evaluation.sigma
                labels = [sequence.request.class_label, NULL][: turn.branches]
                for label in labels:
                    assert pack.keys[next(branches)] == (pytest.approx(timestep), label)


@settings(max_examples=25, deadline=None)
@given(traffics, st.booleans())
def test_folds_are_the_reused_evaluations_and_leave_others_as_they_are(
    asked: list[SequenceRequest], shares_packs: bool
) -> None:
    packer, everybody = packer_of(shares_packs), [planned(request) for request in asked]
    while running := [s for s in everybody if not s.is_finished]:
        turns = {s: s.next_turn() for s in running}
        for pack in prepare(packer, running).packs:
            keeps = any(s.rule is not None for s in pack.batch.sequences)
            assert (pack.shifts_S is not None) == keeps
            assert len(pack.folds) == max(len(turns[s].reused) for s in pack.batch.sequences)
            for place, sequence in enumerate(pack.batch.sequences):
                reused = turns[sequence].reused
                for depth, fold in enumerate(pack.folds):
                    row, weights = fold.rows_S8[place], fold.weights_S2[place].tolist()
                    if depth < len(reused):
                        evaluation = sequence.evaluations[reused[depth].position]
                        expected = torch.tensor(evaluation.coefficients)
                        assert torch.equal(row[:7], expected)
                        assert weights == pytest.approx([reused[depth].last, reused[depth].before])
                    else:  # x' = x, memory' = memory, whatever the prediction
                        assert row[:7].tolist() == [1, 0, 0, 0, 0, 0, 1]
                        assert weights == [0, 0]
                if pack.shifts_S is not None:
                    assert bool(pack.shifts_S[place]) == turns[sequence].shifts


@settings(max_examples=20, deadline=None)
@given(traffics, st.booleans())
def test_noise_is_the_sequences_own_whoever_is_beside_it(
    asked: list[SequenceRequest], shares_packs: bool
) -> None:
    def noises(packer: Packer, everybody: list[Sequence]) -> dict[Sequence, list[torch.Tensor]]:
        drawn: dict[Sequence, list[torch.Tensor]] = {s: [] for s in everybody}
        while running := [s for s in everybody if not s.is_finished]:
            wants = {s: s.evaluations[s.position].needs_noise for s in running}
            for pack in prepare(packer, running).packs:
                for sequence, where in zip(
                    pack.batch.sequences, pack.batch.state_slices, strict=True
                ):
                    if sequence in pack.starts:
                        drawn[sequence].append(pack.starts[sequence])
                    if wants[sequence]:
                        assert pack.noise_TsK is not None
                        drawn[sequence].append(pack.noise_TsK[where])
                    elif pack.noise_TsK is not None:
                        assert not pack.noise_TsK[where].any()
        return drawn

    everybody = [planned(request) for request in asked]
    among = noises(packer_of(shares_packs), everybody)
    for sequence, request in zip(everybody, asked, strict=True):
        twin = planned(request)
        (alone,) = noises(packer_of(), [twin]).values()
        assert len(alone) == len(among[sequence]) >= 1
        assert all(torch.equal(a, b) for a, b in zip(alone, among[sequence], strict=True))


def test_the_noise_of_an_sde_comes_before_it_too() -> None:
    request = request_of(steps=4, sampler="sde-heun", seed=5)
    (pack,) = packer_of().prepare([sequence := planned(request)]).packs
    generator = torch.Generator().manual_seed(5)
    first, second = (torch.randn(6, CHANNELS, generator=generator) for _ in range(2))
    assert sequence.start_noise > 0
    assert torch.equal(pack.starts[sequence], first + sequence.start_noise * second)


def test_who_watches_is_told_by_its_turn() -> None:
    packer = packer_of()
    watches = planned(request_of("w", steps=12, quality="fast"), StepCache("change"))
    plans, exact = sequence_of("p", steps=12, quality="fast"), sequence_of("e", steps=12)
    for turn in range(2):
        (pack,) = prepare(packer, [watches, plans, exact]).packs
        assert pack.watched == ((watches, turn),)


def test_a_description_is_used_as_long_as_it_holds() -> None:
    packer = packer_of()
    a, b = sequence_of("a", steps=9), sequence_of("b", (4, 4), steps=9, interval=(0.0, 0.5))
    batches = [prepare(packer, [a, b]).packs[0].batch for _ in range(9)]
    for one, other in pairwise(batches):
        assert (one is other) == (one.branches == other.branches)
    assert len({id(batch) for batch in batches}) == 2


@pytest.mark.parametrize("shares_packs", [True, False])
def test_rows_of_the_step_before_stay_while_it_is_under_way(shares_packs: bool) -> None:
    """The device may read them while this one is described."""
    rope = rope_of(20)
    packer = Packer(rope, CHANNELS, NULL, shares_packs=shares_packs)
    grids = [(2, 4), (3, 3), (1, 9), (4, 4), (2, 2), (5, 3), (2, 4)]
    before: PreparedStep | None = None
    for number, grid in enumerate(grids):
        step = packer.prepare([sequence_of(str(number), grid)])
        for prepared in (before, step):
            for pack in prepared.packs if prepared else ():
                (sequence,) = pack.batch.sequences
                cos, _ = rope_table(*sequence.grid, 2 * HALF, RopeConfig())
                layout = pack.batch.layout
                rows = layout.rope_row[: sequence.num_tokens]
                assert torch.equal(layout.rope_cos[rows], cos)
        before = step


@pytest.mark.parametrize("num_rows", [1, 20, 40])
def test_rows_of_own_packs_are_right_whoever_sat_out_while_they_moved(num_rows: int) -> None:
    packer = packer_of(shares_packs=False, num_rows=num_rows)
    grids = [(2, 4), (3, 3), (1, 9), (4, 4), (2, 2), (5, 3)]
    everybody = [sequence_of(str(i), grid, steps=40) for i, grid in enumerate(grids)]
    for number in range(40):
        running = [s for i, s in enumerate(everybody) if (number * (i + 3)) % 7 < 3]
        if not running:
            continue
        for pack in prepare(packer, running).packs:
            (sequence,) = pack.batch.sequences
            cos, sin = rope_table(*sequence.grid, 2 * HALF, RopeConfig())
            layout = pack.batch.layout
            rows = layout.rope_row[: sequence.num_tokens]
            assert torch.equal(layout.rope_cos[rows], cos)
            assert torch.equal(layout.rope_sin[rows], sin)


def test_what_is_forgotten_begins_anew() -> None:
    packer, sequence = packer_of(), sequence_of("a")
    assert sequence in packer.prepare([sequence]).packs[0].starts
    assert sequence not in packer.prepare([sequence]).packs[0].starts
    packer.forget([sequence, sequence_of("never seen")])
    assert sequence in packer.prepare([sequence]).packs[0].starts


def test_the_report_tells_padding_from_tokens() -> None:
    packer = Packer(rope_of(), CHANNELS, NULL, pads_to_longest=True)
    sequences = [sequence_of("a", (2, 2)), sequence_of("b", (3, 4), scale=1.0)]
    sequences[0].rule = PlannedReuse((True, False, False, True))
    report = packer.prepare(sequences).report
    assert (report.real_tokens, report.padded_tokens) == (8 + 12, 3 * 12)
    assert (report.num_sequences, report.num_resolutions, report.num_reused) == (2, 2, 2)
