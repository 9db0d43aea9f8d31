"""The error tree is drawn once, and translated once."""

from collections.abc import Iterator

import pytest

from fit_serve import errors
from fit_serve.errors import (
    ERROR_FORMS,
    ComeBackLater,
    DeadlineInfeasible,
    NotReady,
    Overloaded,
    ServeError,
    form_of,
)


def descendants(parent: type[ServeError]) -> Iterator[type[ServeError]]:
    for child in parent.__subclasses__():
        if child.__module__ == errors.__name__:
            yield child
            yield from descendants(child)


RAISED = [error for error in descendants(ServeError) if error is not ComeBackLater]


@pytest.mark.parametrize("error", RAISED)
def test_every_error_has_a_form_and_its_line_in_the_drawing(error: type[ServeError]) -> None:
    drawing = errors.__doc__
    assert drawing is not None
    if error in ERROR_FORMS:
        assert f"- {error.__name__} " in drawing
    else:  # drawn beneath a parent, whose form it has
        assert f"+ {error.__name__} " in drawing
        assert any(parent in ERROR_FORMS for parent in error.__mro__[1:])


def test_what_would_be_late_is_refused_as_overload_with_a_code_of_its_own() -> None:
    error = DeadlineInfeasible(deadline_s=1.5, predicted_s=4.25)
    assert (form_of(error).http_status, error.code) == (429, "deadline_infeasible")
    assert (error.param, error.predicted_s, error.retry_after_s) == ("deadline_ms", 4.25, 2.75)
    assert error.message == "deadline_ms 1500 cannot be kept: predicted are 4250 ms"


def test_no_two_errors_share_a_status_or_a_type() -> None:
    assert len({form.http_status for form in ERROR_FORMS.values()}) == len(ERROR_FORMS)
    assert len({form.type for form in ERROR_FORMS.values()}) == len(ERROR_FORMS)


def test_a_child_of_a_known_error_has_its_parents_form_and_a_stranger_is_our_fault() -> None:
    class FullForToday(Overloaded):
        pass

    class Surprise(ServeError):
        pass

    assert form_of(FullForToday("full", retry_after_s=1.0)).http_status == 429
    assert form_of(Surprise("what")).http_status == 500


@pytest.mark.parametrize("error", [Overloaded("full", 2.5), NotReady("starting", 2.5)])
def test_refusals_for_now_say_when_to_come_back(error: ComeBackLater) -> None:
    assert error.retry_after_s == 2.5
    assert str(error) == error.message
