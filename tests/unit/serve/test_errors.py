"""The error tree is drawn once, and translated once."""

from collections.abc import Iterator

import pytest

from fit_serve import errors
from fit_serve.errors import ERROR_FORMS, ComeBackLater, NotReady, Overloaded, ServeError, form_of


def descendants(parent: type[ServeError]) -> Iterator[type[ServeError]]:
    for child in parent.__subclasses__():
        if child.__module__ == errors.__name__:
            yield child
            yield from descendants(child)


RAISED = [error for error in descendants(ServeError) if error is not ComeBackLater]


@pytest.mark.parametrize("error", RAISED)
def test_every_error_has_its_own_form_and_its_line_in_the_drawing(error: type[ServeError]) -> None:
    assert error in ERROR_FORMS
    assert errors.__doc__ is not None
    assert f"- {error.__name__} " in errors.__doc__


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
