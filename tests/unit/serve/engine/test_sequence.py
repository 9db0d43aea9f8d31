"""A sequence is its plan: made from the request alone, and true about the work it stands for."""

from dataclasses import replace

import pytest
from hypothesis import given, settings

from fit_serve.engine.sequence import plan_sequence
from fit_serve.request import NUM_SEEDS, SequenceRequest
from support.sequences import PIXELS_PER_TOKEN, planned, request_of, requests, sequence_of


@settings(max_examples=50, deadline=None)
@given(requests())
def test_the_work_ahead_is_the_sum_of_what_every_step_needs(request: SequenceRequest) -> None:
    sequence = planned(request)
    needs = []
    ahead = [(sequence.max_tokens, sequence.remaining_tokens)]
    while not sequence.is_finished:
        needs.append(sequence.num_tokens * sequence.num_branches)
        sequence.position += 1
        ahead.append((sequence.max_tokens, sequence.remaining_tokens))
    assert len(needs) == len(sequence.evaluations)
    for done, (reserved, remaining) in enumerate(ahead):
        assert remaining == sum(needs[done:])
        assert reserved == max(needs[done:], default=sequence.num_tokens)


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
    ],
)
def test_what_cannot_be_planned_is_refused(change: dict[str, object], message: str) -> None:
    asked = replace(request_of(), **change)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=message):
        plan_sequence(asked, PIXELS_PER_TOKEN)
