"""Many pictures through the engine: sizes like photographs', none lost, not too many at once."""

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import pytest

from fit_serve.cli.pictures import AREA_SIDES, in_flight, requests_of, sizes_like_photographs
from fit_serve.errors import InvalidRequest
from fit_serve.request import SequenceRequest, SequenceResult
from support.fake_engine import LIMITS, FakeEngine

OWN: dict[str, Any] = dict.fromkeys(
    ("num_inference_steps", "guidance_scale", "guidance_interval", "sampler")
)


def sequences(count: int) -> list[SequenceRequest]:
    return requests_of([(0, 32, 48)] * count, 100, LIMITS, OWN)


def test_sizes_keep_the_aspect_of_the_classs_own_photographs() -> None:
    sizes = sizes_like_photographs([[(192, 96)], [(64, 64), (60, 120)]], 40, 0, 16)
    assert [label for label, _, _ in sizes] == [0] * 40 + [1] * 40
    for label, height, width in sizes:
        assert height % 16 == width % 16 == 0
        near = [height / 2 - width] if label == 0 else [height - width, height - width / 2]
        assert min(abs(error) for error in near) <= 16  # rounding of the two sides
        assert 0.7 * AREA_SIDES[0] ** 2 < height * width < 1.4 * AREA_SIDES[1] ** 2
    assert len({height * width for _, height, width in sizes}) > 5


def test_sizes_are_those_of_the_seed() -> None:
    shapes = [[(100, 150), (150, 100)]]
    first, again, other = (sizes_like_photographs(shapes, 9, seed, 16) for seed in (3, 3, 4))
    assert first == again != other


def test_a_side_is_never_below_two_tokens() -> None:
    ((_, height, width),) = sizes_like_photographs([[(10, 1000)]], 1, 0, 16)
    assert height == 32
    assert width > 500


def test_each_picture_has_a_seed_of_its_own_and_the_models_sampling() -> None:
    made = sequences(3)
    assert [sequence.seed for sequence in made] == [100, 101, 102]
    assert {sequence.guidance_scale for sequence in made} == {LIMITS.defaults.guidance_scale}
    (chosen,) = requests_of([(1, 32, 32)], 0, LIMITS, {**OWN, "guidance_scale": 7.0})
    assert (chosen.class_label, chosen.guidance_scale) == (1, 7.0)
    assert chosen.num_inference_steps == LIMITS.defaults.num_inference_steps


def test_what_the_model_cannot_do_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="sampler"):
        requests_of([(0, 32, 32)], 0, LIMITS, {**OWN, "sampler": "magic"})
    with pytest.raises(InvalidRequest, match="height"):
        requests_of([(0, 32 * 400, 32)], 0, LIMITS, OWN)


def test_all_are_answered_in_order_with_no_more_than_the_limit_at_once() -> None:
    engine = FakeEngine(patient=True)
    most = 0

    def submit(asked: Sequence[SequenceRequest]) -> list[Future[SequenceResult]]:
        nonlocal most
        futures = engine.submit(asked)
        most = max(most, len(engine.unfinished))
        if len(engine.unfinished) == 4 or len(engine.submitted) == 11:
            engine.finish(engine.unfinished[-1])  # the youngest first: order is not that of ending
            for left in engine.unfinished if len(engine.submitted) == 11 else ():
                engine.finish(left)
        return futures

    told: list[tuple[int, int]] = []
    asked = sequences(11)
    results = in_flight(submit, asked, 4, lambda done, of: told.append((done, of)))
    assert [r.sequence_id for r in results] == [s.sequence_id for s in asked]
    assert most == 4
    assert told[-1] == (11, 11)
    assert told == sorted(told)


def test_a_failure_is_not_hidden() -> None:
    engine = FakeEngine(patient=True)

    def submit(asked: Sequence[SequenceRequest]) -> list[Future[SequenceResult]]:
        futures = engine.submit(asked)
        engine.fail(asked[0].sequence_id, RuntimeError("the device is gone"))
        return futures

    with pytest.raises(RuntimeError, match="the device is gone"):
        in_flight(submit, sequences(2), 2, lambda *_: None)
