"""A request as a stream: that it was accepted, how far its images have come, then the result.

For transports that tell a client of progress. The engine tells from its own thread, after every
step; here it becomes events of the event loop, of which a slow reader gets only the latest of each
image, so that nobody who reads slowly is a burden.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from fit_serve.request import GenerationRequest, GenerationResult, Progress
from fit_serve.service import GenerationService


@dataclass(frozen=True)
class Accepted:
    """The request is in the queue; from here on it can be cancelled by its id."""

    request_id: str


Event = Accepted | Progress | GenerationResult


async def stream_generation(
    service: GenerationService, request: GenerationRequest
) -> AsyncGenerator[Event]:
    """Make the images of a request; the first event is its acceptance, the last the result.

    Raises a `ServeError` as `GenerationService.generate` does: a refusal before the first event.
    Closing the iterator, or cancelling the task that reads it, cancels the request.
    """
    unread = _Unread(asyncio.get_running_loop())
    working = asyncio.create_task(
        service.generate(
            request,
            on_progress=unread.put_from_thread,
            on_accepted=lambda: unread.put(Accepted(request.request_id)),
        )
    )
    working.add_done_callback(lambda _: unread.wake())
    try:
        while not working.done():
            await unread.wait()
            for event in unread.take():
                yield event
        yield working.result()
    finally:
        if not working.done():
            working.cancel()
            await asyncio.wait({working})


class _Unread:
    """What has not been read yet: the acceptance, and the newest progress of every image."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._events: dict[str, Accepted | Progress] = {}
        self._changed = asyncio.Event()

    def put_from_thread(self, progress: Progress) -> None:
        """Called by the engine, in its thread; must be quick, and does not fail at the end."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.put, progress)

    def put(self, event: Accepted | Progress) -> None:
        """Replace what is unread of the same image."""
        key = event.sequence_id if isinstance(event, Progress) else ""
        self._events[key] = event
        self._changed.set()

    def wake(self) -> None:
        """Let the reader look whether the request has ended."""
        self._changed.set()

    async def wait(self) -> None:
        """Until there is something to read, or `wake`."""
        await self._changed.wait()
        self._changed.clear()

    def take(self) -> list[Accepted | Progress]:
        """What has not been read, in the order in which the images first moved."""
        events, self._events = list(self._events.values()), {}
        return events
