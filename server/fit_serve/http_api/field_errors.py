"""What is wrong with the fields of a body, in a line that names field, value and what is allowed.

Knows pydantic's errors and types of fields; no field of any request.
"""

import difflib
from collections.abc import Sequence
from types import NoneType
from typing import Any, ClassVar, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from fit_serve.errors import InvalidRequest
from fit_serve.http_api.json_body import json_kind
from fit_serve.limits import shown_text

_KINDS: dict[Any, str] = {
    int: "an integer",
    float: "a finite number",
    bool: "true or false",
    str: "a string",
}


class Body(BaseModel):
    """A body whose fields can be refused in words.

    Attributes:
        expected: what a field takes, where its type does not say it well.
    """

    expected: ClassVar[dict[str, str]] = {}


def refusal(errors: Sequence[ErrorDetails], body: type[Body]) -> InvalidRequest:
    """Say what is wrong with the fields of a body: a misspelt one first, it explains a missing one.

    `errors` are those of a `ValidationError`.
    """
    error = min(errors, key=lambda candidate: candidate["type"] != "extra_forbidden")
    field, *inner = error["loc"]
    assert isinstance(field, str), error
    if error["type"] == "extra_forbidden":
        return _unknown_field(field, body)
    if error["type"] == "missing":
        return InvalidRequest(f"{field} is required: {_expected(field, body)}", param=field)
    at = "".join(f" (at index {index})" for index in inner if isinstance(index, int))
    shown = _shown(error["input"])
    wanted = _expected(field, body)
    return InvalidRequest(f"{field} must be {wanted}, not {shown}{at}", param=field)


def _expected(field: str, body: type[Body]) -> str:
    if field in body.expected:
        return body.expected[field]
    fields = {info.alias or name: info for name, info in body.model_fields.items()}
    return _in_words(fields[field].annotation)


def _in_words(annotation: Any) -> str:
    """Say what a type takes; None is not worth a word."""
    if annotation in _KINDS:
        return _KINDS[annotation]
    if get_origin(annotation) is Literal:
        return f"one of: {', '.join(get_args(annotation))}"
    inner = [kind for kind in get_args(annotation) if kind is not NoneType]
    if get_origin(annotation) is list:
        return f"an array, each {_in_words(inner[0])}"
    return " or ".join(_in_words(kind) for kind in inner)


def _unknown_field(field: str, body: type[Body]) -> InvalidRequest:
    known = [info.alias or name for name, info in body.model_fields.items()]
    near = difflib.get_close_matches(field[:60], known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"the fields are: {', '.join(known)}"
    return InvalidRequest(f"unknown field {shown_text(field)}; {hint}", param=field)


def _shown(value: object) -> str:
    """Write a JSON value for a message; arrays and objects, which may be large, by kind."""
    match value:
        case str():
            return shown_text(value)
        case bool():
            return "true" if value else "false"
        case int() | float():
            return str(value)
        case list():
            return f"an array of {len(value)}"
    return json_kind(value)
