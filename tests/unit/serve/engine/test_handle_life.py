"""Start, drain, stop, death: whatever becomes of the engine, nobody waits for ever."""

import threading
from concurrent.futures import Future, wait

import pytest
from torch import Tensor

from fit_models.bundle import Bundle
from fit_serve.engine import EngineConfig, EngineHandle
from fit_serve.errors import Cancelled, EngineFailed, NotReady, ServeError
from fit_serve.request import SequenceResult
from support.fake_runner import FakeClock
from support.sequences import request_of
from support.toy_engine import (
    PATIENCE_S,
    end_of,
    held,
    running,
    submit,
    threads_of,
    with_decode,
)

silent_death = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"  # Python says nothing of SystemExit
)


@pytest.mark.parametrize("overlap", [False, True])
def test_drain_lets_everything_end_and_takes_nothing_more(bundle: Bundle, overlap: bool) -> None:
    with running(bundle, EngineConfig(max_num_seqs=2, overlap=overlap)) as handle:
        futures = handle.submit([request_of(str(i), (2, 1 + i)) for i in range(6)])
        handle.drain(PATIENCE_S)
        assert all(isinstance(future.result(0), SequenceResult) for future in futures)
        assert (handle.ready(), handle.alive()) == (False, True)
        with pytest.raises(NotReady, match="draining"):
            handle.submit([request_of()])


def test_what_a_drain_does_not_wait_for_is_told_at_stop(bundle: Bundle) -> None:
    with running(bundle, EngineConfig(max_num_seqs=1)) as handle:
        with held(handle, request_of("runs")) as (runs,):
            waits = submit(handle, request_of("waits"))
            handle.drain(0.01)
            assert not runs.done()
        handle.stop()
        assert isinstance(end_of(waits), Cancelled | SequenceResult)
        assert runs.done()


def test_a_stuck_step_is_seen_and_its_end_too(bundle: Bundle) -> None:
    clock = FakeClock()
    with running(bundle, EngineConfig(wedge_timeout_s=5.0), clock) as handle:
        with held(handle, request_of("stuck")) as (future,):
            clock.now_s += 4.9
            assert handle.ready()
            clock.now_s += 0.2
            assert (handle.alive(), handle.ready()) == (False, False)
            with pytest.raises(NotReady, match="stuck"):
                handle.submit([request_of("late")])
        assert isinstance(end_of(future), SequenceResult)
        assert handle.alive()


def test_stopping_does_not_wait_for_a_stuck_step(bundle: Bundle) -> None:
    clock = FakeClock()
    handle = EngineHandle(bundle, EngineConfig(max_num_seqs=1, wedge_timeout_s=5.0), clock=clock)
    handle.start()
    with held(handle, request_of("stuck")) as (stuck,):
        waits = submit(handle, request_of("waits"))
        clock.now_s += 6.0
        handle.stop()
        assert isinstance(end_of(stuck), EngineFailed)
        assert isinstance(end_of(waits), EngineFailed)
    handle._thread.join(PATIENCE_S)  # it goes on, and has nothing to tell any more
    assert not handle._thread.is_alive()


@silent_death
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("death", [AssertionError, SystemExit])
def test_the_death_of_the_loop_leaves_nobody_waiting(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, death: type[BaseException], overlap: bool
) -> None:
    def dies(*args: object) -> None:
        raise death

    with running(bundle, EngineConfig(max_num_seqs=1, overlap=overlap)) as handle:
        with held(handle, request_of("runs")) as (runs,):
            waits = submit(handle, request_of("waits"))
            monkeypatch.setattr(handle._engine.scheduler, "schedule", dies)
        assert [type(end_of(f)) for f in (runs, waits)] == [EngineFailed, EngineFailed]
        handle._thread.join(PATIENCE_S)
        assert (handle.alive(), handle.ready()) == (False, False)
        with pytest.raises(NotReady):
            handle.submit([request_of()])


def test_what_comes_just_as_the_loop_ends_is_refused_and_not_kept(bundle: Bundle) -> None:
    with running(bundle) as handle:
        with held(handle, request_of("runs")) as (runs,):
            handle._engine.stop()  # the thread lives until the step is over
            with pytest.raises(NotReady, match="has stopped"):
                handle.submit([request_of("late"), request_of("later")])
            assert handle.state().waiting == 0
        assert isinstance(end_of(runs), Cancelled)


@silent_death
def test_the_death_of_a_decoder_is_seen_and_nobody_waits_for_ever(bundle: Bundle) -> None:
    def deadly(latents: Tensor) -> None:
        if latents.shape[2] == 5 * 2:  # five rows of tokens
            raise SystemExit

    with running(with_decode(bundle, deadly)) as handle:
        future = submit(handle, request_of("a", (5, 2)))
        for thread in threads_of("decoder"):
            thread.join(PATIENCE_S)
        assert not handle.alive()
        handle.stop()
        assert isinstance(end_of(future), EngineFailed)


@pytest.mark.parametrize("overlap", [False, True])
def test_a_start_that_fails_says_so_and_leaves_no_thread(bundle: Bundle, overlap: bool) -> None:
    def unlucky(latents: Tensor) -> None:
        raise RuntimeError("cannot be decoded")

    handle = EngineHandle(with_decode(bundle, unlucky), EngineConfig(overlap=overlap))
    with pytest.raises(EngineFailed, match="decoding failed"):
        handle.start()
    assert not handle.ready()
    with pytest.raises(NotReady):
        handle.submit([request_of()])
    for thread in threads_of("engine-steps"):  # ends by itself, once it has nothing to do
        thread.join(PATIENCE_S)
    assert threads_of("engine") + threads_of("decoder") == []


def test_it_is_not_ready_before_its_first_picture(bundle: Bundle) -> None:
    may_go, is_warming = threading.Event(), threading.Event()

    def slow(latents: Tensor) -> None:
        is_warming.set()
        assert may_go.wait(PATIENCE_S)

    handle = EngineHandle(with_decode(bundle, slow))
    starter = threading.Thread(target=handle.start)
    starter.start()
    assert is_warming.wait(PATIENCE_S)
    assert not handle.ready()
    with pytest.raises(NotReady, match="starting"):
        handle.submit([request_of()])
    may_go.set()
    starter.join(PATIENCE_S)
    assert handle.ready()
    handle.stop()


@pytest.mark.parametrize("overlap", [False, True])
def test_submitting_while_it_stops_never_leaves_a_future_behind(
    bundle: Bundle, overlap: bool
) -> None:
    with running(bundle, EngineConfig(max_num_seqs=4, overlap=overlap)) as handle:
        futures: list[Future[SequenceResult]] = []
        refused = threading.Event()

        def keep_submitting(name: str) -> None:
            number = 0
            while not refused.is_set():
                number += 1
                try:
                    futures.append(submit(handle, request_of(f"{name}-{number}", (1, 2), 1)))
                except ServeError as error:
                    if isinstance(error, NotReady):
                        refused.set()

        threads = [threading.Thread(target=keep_submitting, args=(name,)) for name in "abc"]
        for thread in threads:
            thread.start()
        while not any(future.done() for future in futures):
            pass
        handle.stop()
        for thread in threads:
            thread.join(PATIENCE_S)
    assert wait(futures, timeout=0).not_done == set()
    assert {type(end_of(future)) for future in futures} <= {SequenceResult, Cancelled}
