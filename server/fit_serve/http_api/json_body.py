"""Bytes of a request body → the JSON object in it, or a refusal.

Stricter than `json.loads`: no NaN or Infinity, no number wider than 64 bits, no key twice, no more
than MAX_BODY_BYTES. This module knows JSON and HTTP headers, and no field of any request.
"""

import json
from collections.abc import Sequence
from email.message import Message
from typing import NoReturn

from fastapi import HTTPException, Request
from starlette.requests import ClientDisconnect

from fit_serve.errors import Cancelled, InvalidRequest
from fit_serve.limits import shown_text

MAX_BODY_BYTES = 64 * 1024
LONGEST_INTEGER = 20
"""Characters of the widest 64-bit integers, sign included."""


async def read_json_object(request: Request) -> dict[str, object]:
    """Read the body of a request as one JSON object.

    Raises `InvalidRequest`, or `HTTPException` 413 (too long) or 415 (not declared as JSON).
    """
    _check_declared_json(request.headers.get("content-type", ""))
    return parse_json_object(await _read_limited(request))


def parse_json_object(body: bytes) -> dict[str, object]:
    """Parse UTF-8 JSON text that must be an object; raises `InvalidRequest`."""
    try:
        parsed = json.loads(
            body.decode("utf-8"),
            parse_int=_narrow_integer,
            parse_constant=_refuse_constant,
            object_pairs_hook=_checked_object,
        )
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body is not UTF-8: byte {error.start} is wrong") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise InvalidRequest(f"the body is not JSON: {error.msg} at {where}") from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply to be a request") from None
    if not isinstance(parsed, dict):
        raise InvalidRequest(f"the body is JSON but not an object: it is {json_kind(parsed)}")
    return parsed


def json_kind(value: object) -> str:
    """Name the kind of a parsed JSON value, as its sender would."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "an array"
    return "an object"


def _check_declared_json(content_type: str) -> None:
    declared = Message()
    declared["content-type"] = content_type
    subtype = declared.get_content_subtype()
    is_json = subtype == "json" or subtype.endswith("+json")
    if declared.get_content_maintype() != "application" or not is_json:
        shown = shown_text(content_type) if content_type else "missing"
        raise HTTPException(
            415, f"content-type is {shown}; send the body with content-type: application/json"
        )


async def _read_limited(request: Request) -> bytes:
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                raise HTTPException(
                    413, f"the body is longer than the limit of {MAX_BODY_BYTES} bytes"
                )
    except ClientDisconnect:
        raise Cancelled("the client went away while it sent the body") from None
    return bytes(body)


def _narrow_integer(digits: str) -> int:
    if len(digits) > LONGEST_INTEGER:
        raise InvalidRequest(
            f"an integer of {len(digits)} digits is wider than the limit of 64 bits"
        )
    return int(digits)


def _refuse_constant(name: str) -> NoReturn:
    raise InvalidRequest(f"{name} is not JSON; numbers must be finite")


def _checked_object(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    for name, value in pairs:
        if not _is_unicode(name) or (isinstance(value, str) and not _is_unicode(value)):
            raise InvalidRequest(
                f"field {shown_text(name)} holds half of a surrogate pair", param=name
            )
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidRequest(f"field {shown_text(twice)} is given twice", param=twice)
    return found


def _is_unicode(text: str) -> bool:
    """Say whether a text can be written as UTF-8; JSON's escapes can say what cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
