"""What surrounds every gRPC call: an id, one line in the log, a status even for a bug."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import structlog
from grpc import aio

from fit_serve.errors import EngineFailed, ServeError, form_of
from fit_serve.grpc_api.statuses import status_of
from fit_serve.request_id import request_id_of

REQUEST_ID = "x-request-id"

_log = logging.getLogger(__name__)


@asynccontextmanager
async def call_scope(method: str, context: aio.ServicerContext[Any, Any]) -> AsyncIterator[None]:
    """Give the call its id, log its end, and end it with the status of what was raised."""
    given = dict(context.invocation_metadata() or ()).get(REQUEST_ID, "")
    request_id = request_id_of(given if isinstance(given, str) else "")
    began, outcome = time.perf_counter(), "CANCELLED"
    await context.send_initial_metadata(((REQUEST_ID, request_id),))
    with structlog.contextvars.bound_contextvars(request_id=request_id):
        try:
            yield
            outcome = "OK"
        except ServeError as error:
            outcome = form_of(error).grpc_status
            if isinstance(error, EngineFailed):
                _log.error("call failed: %s", error.message)
            await _end(context, error)
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except Exception:
            outcome = form_of(EngineFailed("")).grpc_status
            _log.exception("bug while answering")
            await _end(context, EngineFailed("the server failed; its log has the cause"))
        finally:
            duration_ms = round((time.perf_counter() - began) * 1000, 1)
            facts = {"method": method, "status": outcome, "duration_ms": duration_ms}
            _log.info("answered", extra=facts)


async def _end(context: aio.ServicerContext[Any, Any], error: ServeError) -> None:
    status = status_of(error)
    await context.abort(status.code, status.details, status.trailing_metadata)
