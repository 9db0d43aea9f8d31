"""What the handle takes, refuses and answers: at once, or exactly once."""

from dataclasses import replace

import numpy
import pytest
import torch
from torch import Tensor

from fit_models.bundle import Bundle
from fit_serve.engine import EngineConfig, EngineHandle
from fit_serve.engine.packer import Packer
from fit_serve.engine.sequence import Sequence
from fit_serve.errors import (
    Cancelled,
    DeadlineExceeded,
    DeadlineInfeasible,
    EngineFailed,
    InvalidRequest,
    NotReady,
    Overloaded,
)
from fit_serve.request import Progress, SequenceRequest, SequenceResult
from support.fake_runner import FakeClock
from support.sequences import request_of
from support.toy_engine import PATIENCE_S, end_of, held, running, submit, with_decode

# --- pictures -----------------------------------------------------------------------------------


def test_a_picture_has_the_size_asked_for_and_the_times_it_took(bundle: Bundle) -> None:
    with running(bundle) as handle:
        result = submit(handle, request_of("a", (2, 5))).result(PATIENCE_S)
    assert result.sequence_id == "a"
    assert (result.pixels.shape, result.pixels.dtype) == ((32, 80, 3), numpy.uint8)
    assert len(numpy.unique(result.pixels)) > 20
    times = result.timings
    assert min(times.queued_s, times.run_s, times.decode_s) >= 0


def test_the_seed_makes_the_picture(bundle: Bundle) -> None:
    with running(bundle) as handle:
        futures = handle.submit([request_of(f"{i}", seed=seed) for i, seed in enumerate((1, 1, 2))])
        one, same, other = (future.result(PATIENCE_S).pixels.astype(int) for future in futures)
    assert abs(one - same).max() <= 1
    assert abs(one - other).max() > 10


def test_progress_counts_every_evaluation(bundle: Bundle) -> None:
    told: list[Progress] = []
    with running(bundle) as handle:
        (future,) = handle.submit([request_of("a", steps=3, sampler="heun")], told.append)
        future.result(PATIENCE_S)
    assert told == [Progress("a", done, 6) for done in range(1, 7)]


@pytest.mark.parametrize("rule", ["plan", "change"])
def test_a_lower_quality_takes_fewer_steps_and_tells_of_all_evaluations(
    bundle: Bundle, rule: str
) -> None:
    told: dict[str, list[int]] = {"exact": [], "balanced": [], "fast": []}
    pixels = {}
    with running(bundle, EngineConfig(step_cache_rule=rule)) as handle:
        for quality, positions in told.items():
            request = request_of(quality, (3, 3), steps=24, quality=quality)
            (future,) = handle.submit(
                [request], lambda p, positions=positions: positions.append(p.evaluations_done)
            )
            pixels[quality] = future.result(PATIENCE_S).pixels
    assert told["exact"] == list(range(1, 25))
    for positions in told.values():
        assert positions == sorted(set(positions))
        assert positions[-1] == 24
    assert len(told["fast"]) < len(told["balanced"]) < 24
    assert not numpy.array_equal(pixels["exact"], pixels["fast"])


def test_both_loops_make_the_same_picture(bundle: Bundle) -> None:
    requests = [request_of(str(i), (2, 1 + i), 6, sampler="heun", seed=i) for i in range(4)]
    pictures = []
    for overlap in (False, True):
        with running(bundle, EngineConfig(overlap=overlap, batch_invariant=True)) as handle:
            futures = handle.submit(requests)
            pictures.append([future.result(PATIENCE_S).pixels for future in futures])
    assert all(numpy.array_equal(one, other) for one, other in zip(*pictures, strict=True))


def test_an_error_in_on_progress_is_not_the_pictures(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(progress: Progress) -> None:
        raise RuntimeError("client bug")

    with running(bundle) as handle:
        (future,) = handle.submit([request_of()], broken)
        assert isinstance(end_of(future), SequenceResult)
        assert handle.alive()
    assert "client bug" in caplog.text


# --- one that fails fails alone -----------------------------------------------------------------


@pytest.mark.parametrize("overlap", [False, True])
def test_a_latent_that_is_not_finite_fails_alone(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, overlap: bool
) -> None:
    start = Packer._start

    def poisoned(packer: Packer, sequence: Sequence) -> Tensor:
        noise = start(packer, sequence)
        if sequence.sequence_id == "bad":
            noise[0, 0] = torch.nan
        return noise

    monkeypatch.setattr(Packer, "_start", poisoned)
    with running(bundle, EngineConfig(overlap=overlap)) as handle:
        alone = submit(handle, request_of("good")).result(PATIENCE_S).pixels
        good, bad, _ = handle.submit([request_of("good"), request_of("bad"), request_of("c")])
        among = good.result(PATIENCE_S).pixels
        assert isinstance(end_of(bad), EngineFailed)
    assert abs(among.astype(int) - alone).max() <= 1


def test_a_picture_that_cannot_be_decoded_fails_alone(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    def unlucky(latents: Tensor) -> None:
        if latents.shape[2] == 5 * 2:  # five rows of tokens
            raise RuntimeError("cannot be decoded")

    with running(with_decode(bundle, unlucky)) as handle:
        requests = [request_of(str(rows), (rows, 2)) for rows in (4, 5, 6)]
        ends = [end_of(future) for future in handle.submit(requests)]
    assert [type(end) for end in ends] == [SequenceResult, EngineFailed, SequenceResult]
    assert "cannot be decoded" in caplog.text


@pytest.mark.parametrize("overlap", [False, True])
def test_a_step_that_fails_does_not_stop_the_engine(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, overlap: bool
) -> None:
    def fails(*args: object) -> Tensor:
        raise MemoryError

    with running(bundle, EngineConfig(overlap=overlap)) as handle:
        with monkeypatch.context() as patch:
            patch.setattr(bundle.network, "denoise", fails)
            assert isinstance(end_of(submit(handle, request_of("a"))), EngineFailed)
        assert isinstance(end_of(submit(handle, request_of("a"))), SequenceResult)


# --- admission ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (request_of("bad", sampler="dopri5"), "sampler 'dopri5' is unknown"),
        (replace(request_of("bad"), height=33), "height is 33; it must be a multiple of 16"),
        (request_of("bad", label=3), r"class is 3; it must be in 0\.\.2"),
        (request_of("bad", label=-1), r"class is -1; it must be in 0\.\.2"),
        (request_of("bad", quality="best"), "quality 'best' is unknown"),
        (request_of("good"), "ids must be unique"),
    ],
)
def test_all_are_taken_or_none(bundle: Bundle, bad: SequenceRequest, message: str) -> None:
    with running(bundle) as handle:
        with pytest.raises(InvalidRequest, match=message):
            handle.submit([request_of("good"), bad])
        assert handle.state().waiting + handle.state().running == 0
        assert isinstance(end_of(submit(handle, request_of("good"))), SequenceResult)


def test_a_full_queue_refuses_and_says_when_to_come_back(bundle: Bundle) -> None:
    config = EngineConfig(max_num_seqs=1, max_queued_requests=3)
    with running(bundle, config) as handle, held(handle, request_of("runs")):
        waiting = handle.submit([request_of("w1"), request_of("w2")])
        before = handle.state()
        assert (before.running, before.waiting) == (1, 2)
        with pytest.raises(Overloaded, match="2 sequences are waiting, 2 more") as refused:
            handle.submit([request_of("x1"), request_of("x2")])
        assert refused.value.retry_after_s > 0
        assert handle.state() == before
        waiting += handle.submit([request_of("w3")])
    assert all(isinstance(end_of(future), SequenceResult | Cancelled) for future in waiting)


def test_more_than_may_ever_wait_is_no_reason_to_come_back(bundle: Bundle) -> None:
    with (
        running(bundle, EngineConfig(max_queued_requests=2)) as handle,
        pytest.raises(InvalidRequest, match="3 images at once; the limit is 2"),
    ):
        handle.submit([request_of(str(i)) for i in range(3)])


def test_before_start_and_after_stop_nothing_is_taken(bundle: Bundle) -> None:
    handle = EngineHandle(bundle)
    with pytest.raises(NotReady, match="starting"):
        handle.submit([request_of()])
    handle.start()
    assert handle.ready()
    handle.stop()
    assert not handle.ready()
    with pytest.raises(NotReady, match="stopped") as refused:
        handle.submit([request_of()])
    assert refused.value.retry_after_s > 0


# --- deadlines ----------------------------------------------------------------------------------


def test_a_deadline_that_passes_ends_a_sequence(bundle: Bundle) -> None:
    clock = FakeClock()
    late = request_of("late", steps=400, deadline_s=1000.0)
    with running(bundle, clock=clock) as handle:
        with held(handle, late, request_of("other")) as (of_late, of_other):
            clock.now_s += 1000.5
        assert isinstance(end_of(of_late), DeadlineExceeded)
        assert isinstance(end_of(of_other), SequenceResult)
        assert handle.state().remaining_tokens == 0
        assert isinstance(end_of(submit(handle, request_of("late"))), SequenceResult)


def test_a_deadline_nobody_could_keep_is_the_requests_fault_and_changes_nothing(
    bundle: Bundle,
) -> None:
    with running(bundle) as handle:
        with pytest.raises(InvalidRequest, match="cannot be kept even on an idle") as refused:
            handle.submit([request_of("a", (6, 6), steps=100, deadline_s=1e-9)])
        assert (refused.value.param, refused.value.code) == ("deadline_ms", "deadline_infeasible")
        assert handle.state().waiting + handle.state().running == 0


def test_a_deadline_that_others_prevent_is_overload(bundle: Bundle) -> None:
    config = EngineConfig(max_num_seqs=1)
    with running(bundle, config) as handle, held(handle, request_of("runs", steps=9)) as futures:
        futures += handle.submit([request_of(str(i), (6, 6), steps=200) for i in range(3)])
        alone_s = _alone_s(handle, request_of("late"))
        with pytest.raises(DeadlineInfeasible) as refused:
            handle.submit([request_of("late", deadline_s=2 * alone_s)])
        assert refused.value.predicted_s > 2 * alone_s
        handle.cancel(["0", "1", "2"])


def _alone_s(handle: EngineHandle, request: SequenceRequest) -> float:
    """As the handle predicts it now; the loop stands still meanwhile."""
    sequence = handle._plan(request)
    handle._admission.prepare([sequence], 0.0)
    assert sequence.alone_s > 0
    return sequence.alone_s


# --- cancel -------------------------------------------------------------------------------------


def test_cancelling_frees_the_tokens_of_what_runs_and_what_waits(bundle: Bundle) -> None:
    stays, runs, waits = (request_of(name, (4, 4)) for name in ("stays", "runs", "waits"))
    with running(bundle, EngineConfig(max_num_seqs=2)) as handle:
        with held(handle, stays, runs) as futures:
            futures += handle.submit([waits])
            assert (handle.state().running, handle.state().waiting) == (2, 1)
            handle.cancel(["runs", "waits", "never seen"])
        ends = [type(end_of(future)) for future in futures]
        assert ends == [SequenceResult, Cancelled, Cancelled]
        assert handle.state().remaining_tokens == 0
        assert isinstance(end_of(submit(handle, runs)), SequenceResult)
        handle.cancel(["runs"])  # too late: nothing happens


def test_cancelling_from_on_progress_at_every_moment(bundle: Bundle) -> None:
    with running(bundle) as handle:
        for moment in range(1, 5):

            def leave(progress: Progress, moment: int = moment) -> None:
                if progress.evaluations_done == moment:
                    handle.cancel([progress.sequence_id])

            (future,) = handle.submit([request_of("a", steps=4)], leave)
            expected = Cancelled if moment < 4 else SequenceResult  # done is done
            assert isinstance(end_of(future), expected)
