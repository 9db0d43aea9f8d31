"""What a client raises: a refusal or failure that the server told, or a server out of reach."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WORTH_RETRYING = frozenset({429, 503})
LONGEST_WAIT_S = 60.0


class RequestFailed(Exception):
    """The server answered with an error.

    Attributes:
        status: of HTTP; 0 where an answer had begun already.
        type: word of the error object, as `invalid_request_error`.
        param: the field that is meant, if one is.
        code: a word for programs, if there is one.
        retry_after_s: seconds after which another attempt makes sense, if one does.
    """

    def __init__(
        self,
        message: str,
        status: int,
        type: str = "",  # noqa: A002
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.type = type
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s


class ServerUnreachable(Exception):
    """Nobody answers at the address, or the connection broke."""


def failure_of(body: object, status: int, headers: Mapping[str, str]) -> RequestFailed:
    """Read an error answer; a proxy's own page becomes a message too."""
    error: Mapping[str, Any] = {}
    if isinstance(body, Mapping) and isinstance(body.get("error"), Mapping):
        error = body["error"]
    wait = headers.get("retry-after", "")
    return RequestFailed(
        str(error.get("message") or f"the server answered {status}"),
        status,
        str(error.get("type") or ""),
        error.get("param"),
        error.get("code"),
        float(wait) if wait.isdigit() else None,
    )


def wait_before_retry(failure: RequestFailed, tries: int) -> float | None:
    """Seconds to wait, or None where trying again does not help."""
    if failure.status not in WORTH_RETRYING:
        return None
    wait = 0.5 * 2**tries if failure.retry_after_s is None else failure.retry_after_s
    return min(wait, LONGEST_WAIT_S)
