"""Steps run one after another, in the loop's thread or in one beside it; errors are in futures."""

import threading
from concurrent.futures import Future
from typing import Any

import pytest
import torch

from fit_serve.engine.step_clock import StepClock
from fit_serve.engine.step_executor import InlineExecutor, ThreadExecutor

PATIENCE_S = 20.0


def _fails(step: Any) -> None:
    raise RuntimeError(step)


def test_inline_a_step_is_done_when_it_is_handed_in() -> None:
    executor, threads = InlineExecutor(), []
    done = executor.submit(lambda step: threads.append(threading.get_ident()) or step, 7)
    assert done.done()
    assert done.result() == 7
    assert threads == [threading.get_ident()]
    assert isinstance(executor.submit(_fails, "x").exception(), RuntimeError)
    executor.close()
    assert executor.depth == 0


def test_inline_what_no_handler_may_hold_goes_through() -> None:
    def exits(step: Any) -> None:
        raise SystemExit

    with pytest.raises(SystemExit):
        InlineExecutor().submit(exits, None)


def test_beside_the_loop_steps_run_in_order_in_one_thread_that_was_made_ready() -> None:
    made_ready, ran = [], []
    executor = ThreadExecutor(lambda: made_ready.append(threading.get_ident()))
    futures: list[Future[Any]] = [
        executor.submit(lambda step: ran.append((step, threading.get_ident())), i)
        for i in range(50)
    ]
    futures.append(executor.submit(_fails, "x"))
    futures.append(executor.submit(lambda step: step, "after"))
    assert isinstance(futures[-2].exception(PATIENCE_S), RuntimeError)
    assert futures[-1].result(PATIENCE_S) == "after"
    executor.close()
    assert [step for step, _ in ran] == list(range(50))
    assert {thread for _, thread in ran} == set(made_ready)
    assert made_ready != [threading.get_ident()]
    assert executor.depth == 1


def test_closing_waits_for_nothing_and_ends_the_thread_after_its_step() -> None:
    may_go, thread = threading.Event(), []

    def waits(step: Any) -> None:
        thread.append(threading.current_thread())
        assert may_go.wait(PATIENCE_S)

    executor = ThreadExecutor(lambda: None)
    future = executor.submit(waits, None)
    executor.close()
    assert not future.done()
    may_go.set()
    future.result(PATIENCE_S)
    thread[0].join(PATIENCE_S)
    assert not thread[0].is_alive()


def test_on_a_cpu_a_clock_stops_when_it_is_told() -> None:
    clock = StepClock(torch.device("cpu"))
    with pytest.raises(AssertionError, match=r"stop\(\) comes first"):
        clock.wait()
    clock.stop(torch.device("cpu"))
    assert clock.done is None
    assert clock.wait() == clock.wait() >= 0
