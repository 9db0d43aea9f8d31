"""Server-sent events as an HTTP answer: sent as they come, ended when the client goes.

Written for ASGI itself: a framework's streaming answer leaves its generator suspended when a
client goes away, and what it holds would be freed only when memory is tidied.
"""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

from fastapi import Response
from starlette.types import Receive, Scope, Send

from fit_serve.errors import EngineFailed, ServeError
from fit_serve.http_api.disconnect import disconnect
from fit_serve.http_api.error_body import error_fields

KEEP_ALIVE_S = 15.0
"""Proxies close what is silent for a minute."""
_log = logging.getLogger(__name__)
_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}


@dataclass(frozen=True)
class ServerSentEvent:
    """One event: its name, and a value that is sent as JSON."""

    name: str
    data: object

    def encoded(self) -> bytes:
        """The bytes on the wire; JSON has no line breaks."""
        return f"event: {self.name}\ndata: {json.dumps(self.data)}\n\n".encode()


async def ends_with_error(
    events: AsyncGenerator[ServerSentEvent],
) -> AsyncGenerator[ServerSentEvent]:
    """The same events; what is raised becomes the last of them, `error`."""
    async with aclosing(events):
        try:
            async for event in events:
                yield event
        except ServeError as error:
            yield ServerSentEvent("error", error_fields(error))
        except Exception:
            _log.exception("bug while answering")
            bug = EngineFailed("the server failed; its log has the cause")
            yield ServerSentEvent("error", error_fields(bug))


class EventStream(Response):
    """Sends events until they end; the generator is closed before the answer is over."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[ServerSentEvent]) -> None:
        """Take the events; none of them may raise, for the status has been sent by then."""
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        sending = asyncio.create_task(self._send_all(send))
        leaving = asyncio.create_task(disconnect(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            sending.cancel()
            await asyncio.wait({sending, leaving})
        if not sending.cancelled():
            sending.result()

    async def _send_all(self, send: Send) -> None:
        async with aclosing(self._events):
            head = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
            await send(head)
            while True:
                async with _next_of(self._events) as coming:
                    while not (await asyncio.wait({coming}, timeout=KEEP_ALIVE_S))[0]:
                        await _send_part(send, b": still here\n\n")
                    event = coming.result()
                if event is None:
                    break
                await _send_part(send, event.encoded())
            await send({"type": "http.response.body", "body": b"", "more_body": False})


@asynccontextmanager
async def _next_of(
    events: AsyncGenerator[ServerSentEvent],
) -> AsyncIterator[asyncio.Future[ServerSentEvent | None]]:
    """The next event, as something to wait for, None at the end; it is not left running."""

    async def following() -> ServerSentEvent | None:
        return await anext(events, None)

    coming = asyncio.ensure_future(following())
    try:
        yield coming
    finally:
        if not coming.done():
            coming.cancel()
            await asyncio.wait({coming})


async def _send_part(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})
