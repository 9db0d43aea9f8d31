"""Whatever is accepted ends exactly once, whoever is first to end it."""

import threading

import numpy
import pytest

from fit_serve.engine.ledger import Ledger
from fit_serve.errors import Cancelled, EngineFailed, InvalidRequest
from fit_serve.request import Progress, SequenceResult, SequenceTimings
from support.sequences import sequence_of

RESULT = SequenceResult("a", numpy.zeros((1, 1, 3), numpy.uint8), SequenceTimings(0.0, 0.0, 0.0))


def test_the_first_end_counts_and_later_ones_do_nothing() -> None:
    ledger, a, b = Ledger(), sequence_of("a"), sequence_of("b")
    done, failed = ledger.open([a, b], None)
    ledger.finish(a, RESULT)
    ledger.fail(a, EngineFailed("too late"))
    ledger.fail(b, Cancelled("first"))
    ledger.finish(b, RESULT)
    assert done.result(0) is RESULT
    with pytest.raises(Cancelled):
        failed.result(0)
    assert ledger.sequences() == []


def test_a_client_cannot_end_a_future() -> None:
    ledger, a = Ledger(), sequence_of("a")
    (future,) = ledger.open([a], None)
    assert not future.cancel()
    ledger.finish(a, RESULT)
    assert future.result(0) is RESULT


@pytest.mark.parametrize("ids", [("new", "used"), ("new", "new")])
def test_all_are_entered_or_none(ids: tuple[str, str]) -> None:
    ledger, used = Ledger(), sequence_of("used")
    ledger.open([used], None)
    with pytest.raises(InvalidRequest, match="must be unique"):
        ledger.open([sequence_of(name) for name in ids], None)
    assert ledger.sequences() == [used]


def test_who_comes_late_does_not_end_the_next_owner_of_the_id() -> None:
    """A step that was stuck when the engine stopped may still report."""
    ledger, old, new = Ledger(), sequence_of("a"), sequence_of("a")
    (of_old,) = ledger.open([old], None)
    ledger.fail(old, EngineFailed("stopped"))
    (of_new,) = ledger.open([new], None)
    ledger.finish(old, RESULT)
    assert isinstance(of_old.exception(0), EngineFailed)
    assert not of_new.done()


def test_progress_reaches_who_asked_until_the_end() -> None:
    ledger, a, told = Ledger(), sequence_of("a", steps=4), list[Progress]()
    ledger.open([a], told.append)
    a.position = 4  # handed to the device already; told is what has come back
    ledger.tell_progress(a, 3)
    ledger.finish(a, RESULT)
    ledger.tell_progress(a, 4)
    assert told == [Progress("a", 3, 4)]


def test_an_error_of_a_listener_is_logged_and_stops_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ledger, a = Ledger(), sequence_of("a")

    def broken(progress: Progress) -> None:
        raise RuntimeError("client bug")

    ledger.open([a], broken)
    ledger.tell_progress(a, 1)
    assert "on_progress of a failed" in caplog.text
    assert ledger.sequences() == [a]


def test_a_listener_may_call_back() -> None:
    ledger, a = Ledger(), sequence_of("a")
    ledger.open([a], lambda progress: ledger.cancel([progress.sequence_id]))
    ledger.tell_progress(a, 1)
    assert a.is_cancelled


def test_cancel_marks_what_is_there_and_ignores_the_rest() -> None:
    ledger, a, b = Ledger(), sequence_of("a"), sequence_of("b")
    ledger.open([a, b], None)
    ledger.finish(b, RESULT)
    ledger.cancel(["a", "b", "never seen"])
    assert (a.is_cancelled, b.is_cancelled) == (True, False)


def test_of_many_threads_one_ends_a_sequence() -> None:
    """A second `set_result` on a future would raise."""
    ledger = Ledger()
    sequences = [sequence_of(str(i)) for i in range(200)]
    futures = ledger.open(sequences, None)
    errors: list[Exception] = []

    def end_all(order: int) -> None:
        try:
            for sequence in sequences[::order]:
                ledger.finish(sequence, RESULT)
                ledger.fail(sequence, Cancelled("raced"))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=end_all, args=(order,)) for order in (1, -1, 1, -1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert all(future.done() for future in futures)
