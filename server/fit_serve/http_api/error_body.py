"""Errors → status and the one error object, whatever raised them.

Every failure of every route has this body, also those that the framework finds by itself (no such
route, wrong method): `{"error": {"message", "type", "param", "code"}}`, all four keys present.
"""

import logging
import math

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from fit_serve.errors import ComeBackLater, EngineFailed, NotReady, ServeError, form_of

LONGEST_PARAM = 64
LONGEST_PATH = 64

_log = logging.getLogger(__name__)


class ErrorDetail(BaseModel):
    """What went wrong: for a person, as a word for a program, and in which field."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail


def install_error_handlers(app: FastAPI) -> None:
    """Answer every error of the application with the error object."""

    async def on_serve_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ServeError)
        if isinstance(error, EngineFailed):
            _log.error("request failed: %s", error.message)
        return error_answer(error)

    async def on_http_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return _http_error_answer(request, error)

    app.add_exception_handler(ServeError, on_serve_error)
    app.add_exception_handler(HTTPException, on_http_error)


def error_answer(error: ServeError) -> JSONResponse:
    """Give the answer for an error: status, object, and `Retry-After` where coming back helps."""
    headers = {}
    if isinstance(error, ComeBackLater):
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    if isinstance(error, NotReady):
        headers["connection"] = "close"
    return JSONResponse(error_fields(error), form_of(error).http_status, headers)


def error_fields(error: ServeError) -> dict[str, object]:
    """The error object, for answers that have begun already."""
    return _body(error.message, form_of(error).type, error.param, error.code).model_dump()


def _http_error_answer(request: Request, error: HTTPException) -> JSONResponse:
    where = f"{request.method} {request.url.path[:LONGEST_PATH]}"
    message, code = str(error.detail), None
    match error.status_code:
        case 404:
            message, code = f"there is no route {where}", "route_not_found"
        case 405:
            message, code = f"{where} is not allowed on this route", "method_not_allowed"
        case 413:
            code = "body_too_large"
        case 415:
            code = "unsupported_media_type"
    kind = "not_found_error" if error.status_code == 404 else "invalid_request_error"
    if error.status_code >= 500:
        kind = "server_error"
    body = _body(message, kind, None, code)
    return JSONResponse(body.model_dump(), error.status_code, dict(error.headers or {}))


def _body(message: str, kind: str, param: str | None, code: str | None) -> ErrorBody:
    detail = ErrorDetail(
        message=_encodable(message),
        type=kind,
        param=None if param is None else _encodable(param[:LONGEST_PARAM]),
        code=code,
    )
    return ErrorBody(error=detail)


def _encodable(text: str) -> str:
    """Replace what UTF-8 cannot carry: JSON may hold half of a surrogate pair, an answer not."""
    return text.encode("utf-8", "replace").decode("utf-8")
