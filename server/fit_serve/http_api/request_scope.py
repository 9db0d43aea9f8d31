"""What surrounds every HTTP request: an id, one line in the log, an answer even to a bug.

A plain ASGI middleware, so that a client's disconnect reaches the route untouched.
"""

import logging
import time

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fit_serve.errors import EngineFailed
from fit_serve.http_api.error_body import error_answer
from fit_serve.request_id import request_id_of

QUIET_PATHS = frozenset({"/health", "/livez", "/readyz", "/metrics"})
"""Asked for every few seconds by machines: logged as debug only."""

_log = logging.getLogger(__name__)


class RequestScope:
    """Gives every request its `x-request-id`, logs its end, turns a bug into an error object."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap an application."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection; all but HTTP passes through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        request_id = request_id_of(Headers(scope=scope).get("x-request-id", ""))
        status: int | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, send_with_id)
            except Exception:
                _log.exception("bug while answering")
                if status is not None:
                    raise
                answer = error_answer(EngineFailed("the server failed; its log has the cause"))
                await answer(scope, receive, send_with_id)
            finally:
                facts = {
                    "method": scope["method"],
                    "path": scope["path"],
                    "status": status,
                    "duration_ms": round((time.perf_counter() - began) * 1000, 1),
                }
                quiet = scope["path"] in QUIET_PATHS
                _log.log(logging.DEBUG if quiet else logging.INFO, "answered", extra=facts)
