"""A request as a stream: how far its images have come, then the result.

For transports that tell a client of progress. The engine tells from its own thread, after every
step; here it becomes events of the event loop, of which a slow reader gets only the latest of each
image, so that nobody who reads slowly is a burden.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

from fit_serve.request import GenerationRequest, GenerationResult, Progress
from fit_serve.service import GenerationService

Event = Progress | GenerationResult


async def stream_generation(
    service: GenerationService, request: GenerationRequest
) -> AsyncGenerator[Event]:
    """Make the images of a request; the last event is the result.

    Raises a `ServeError` as `GenerationService.generate` does. Closing the iterator, or cancelling
    the task that reads it, cancels the request.
    """
    latest = _Latest(asyncio.get_running_loop())
    working = asyncio.create_task(service.generate(request, latest.put_from_thread))
    working.add_done_callback(lambda _: latest.wake())
    try:
        while not working.done():
            await latest.wait()
            for event in latest.take():
                yield event
        yield working.result()
    finally:
        if not working.done():
            working.cancel()
            await asyncio.wait({working})


class _Latest:
    """The newest progress of every image that has not been read yet."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._unread: dict[str, Progress] = {}
        self._changed = asyncio.Event()

    def put_from_thread(self, progress: Progress) -> None:
        """Called by the engine, in its thread; must be quick, and does not fail at the end."""
        self._call(lambda: self._put(progress))

    def wake(self) -> None:
        """Let the reader look whether the request has ended."""
        self._changed.set()

    async def wait(self) -> None:
        """Until there is something to read, or `wake`."""
        await self._changed.wait()
        self._changed.clear()

    def take(self) -> list[Progress]:
        """What has not been read, in the order in which the images first moved."""
        unread, self._unread = list(self._unread.values()), {}
        return unread

    def _put(self, progress: Progress) -> None:
        self._unread[progress.sequence_id] = progress
        self._changed.set()

    def _call(self, change: Callable[[], None]) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(change)
