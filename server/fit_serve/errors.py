"""What can go wrong with a request, and what each failure is called on the wire.

* ServeError
  - InvalidRequest     the client asked for something we do not do
  - NotFound           there is no such thing here
  - Overloaded         no room now; come back after `retry_after_s` seconds
    + DeadlineInfeasible   it would be late
  - NotReady           starting, draining or dead; come back after `retry_after_s` seconds
  - DeadlineExceeded   the time given to the request ran out
  - Cancelled          the client went away, or asked us to stop
  - EngineFailed       our fault; the log has the cause

This module knows no transport. Every transport reads the one table, `ERROR_FORMS`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


class ServeError(Exception):
    """A failure that a client is told about.

    The message names field, value and limit where there are any. `param` is the name of the
    offending field, `code` a short word for programs; both may be None.
    """

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        """Remember what to tell the client."""
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


class InvalidRequest(ServeError):
    """The client asked for something we do not do; asking again will not help."""


class NotFound(ServeError):
    """There is no such model, image or route here."""


class ComeBackLater(ServeError):
    """Refused now, welcome later. Raised only as one of its subclasses."""

    def __init__(
        self,
        message: str,
        retry_after_s: float,
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        """Remember the message and after how many seconds another attempt makes sense."""
        super().__init__(message, param, code)
        self.retry_after_s = retry_after_s


class Overloaded(ComeBackLater):
    """The queue is full. Refused before queueing, so nothing is lost but the attempt."""

    def __init__(
        self,
        message: str,
        retry_after_s: float,
        param: str | None = None,
        code: str | None = "queue_full",
    ) -> None:
        """Take the same as its parent, with the code the field uses for a full queue."""
        super().__init__(message, retry_after_s, param, code)


class DeadlineInfeasible(Overloaded):
    """With what is here already the request would be late. Refused before queueing."""

    def __init__(self, deadline_s: float, predicted_s: float) -> None:
        """Remember both, in seconds."""
        super().__init__(
            f"deadline_ms {1e3 * deadline_s:.0f} cannot be kept: predicted are "
            f"{1e3 * predicted_s:.0f} ms",
            retry_after_s=predicted_s - deadline_s,
            param="deadline_ms",
            code="deadline_infeasible",
        )
        self.predicted_s = predicted_s


class NotReady(ComeBackLater):
    """The engine is starting, draining or dead."""


class DeadlineExceeded(ServeError):
    """The time given to the request ran out; its sequences were cancelled."""


class Cancelled(ServeError):
    """The client went away or asked us to stop. Seen in logs only: nobody is left to tell."""


class EngineFailed(ServeError):
    """Our fault. The log has the cause; the client gets no inner detail."""


@dataclass(frozen=True)
class ErrorForm:
    """How a class of errors looks on the wire.

    HTTP status, `type` of the error object, and the name of the status in gRPC.
    """

    http_status: int
    type: str
    grpc_status: str


ERROR_FORMS: Mapping[type[ServeError], ErrorForm] = MappingProxyType(
    {
        InvalidRequest: ErrorForm(400, "invalid_request_error", "INVALID_ARGUMENT"),
        NotFound: ErrorForm(404, "not_found_error", "NOT_FOUND"),
        Overloaded: ErrorForm(429, "overloaded_error", "RESOURCE_EXHAUSTED"),
        NotReady: ErrorForm(503, "service_unavailable", "UNAVAILABLE"),
        DeadlineExceeded: ErrorForm(504, "timeout_error", "DEADLINE_EXCEEDED"),
        Cancelled: ErrorForm(499, "cancelled_error", "CANCELLED"),
        EngineFailed: ErrorForm(500, "server_error", "INTERNAL"),
    }
)


def form_of(error: ServeError) -> ErrorForm:
    """Give the wire form of an error: that of the nearest class of its ancestry in the table.

    An error of no class in the table is a gap in this file, hence our fault: status 500.
    """
    for ancestor in type(error).__mro__:
        if ancestor in ERROR_FORMS:
            return ERROR_FORMS[ancestor]
    return ERROR_FORMS[EngineFailed]
