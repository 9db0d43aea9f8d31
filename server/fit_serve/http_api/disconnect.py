"""A client that goes away, noticed while its answer is being made."""

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

from fastapi import Request
from starlette.types import Receive

from fit_serve.errors import Cancelled

T = TypeVar("T")


async def unless_disconnected(request: Request, work: Coroutine[object, object, T]) -> T:
    """Do the work, or cancel it and raise `Cancelled` as soon as the client is gone."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(disconnect(request.receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise Cancelled("the client went away")
    finally:
        leaving.cancel()
        working.cancel()
        await asyncio.wait({working, leaving})


async def disconnect(receive: Receive) -> None:
    """Return when the client has gone. The body has been read, so nothing else can come."""
    while (await receive())["type"] != "http.disconnect":
        pass
