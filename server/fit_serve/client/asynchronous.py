"""The client for asyncio: the same calls, awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Self

import httpx

from fit_serve.client.answers import Event, Picture, pictures_of
from fit_serve.client.transport import failed, reachable
from fit_serve.client.trouble import RequestFailed, wait_before_retry
from fit_serve.client.wire import (
    CONNECT_S,
    EVENTS,
    JSON,
    TIMEOUT_S,
    EventLines,
    body_of,
    headers_of,
)


class AsyncClient:
    """Pictures from a server, for an event loop. Close it, or use it in an `async with`."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        key: str | None = None,
        timeout_s: float = TIMEOUT_S,
        max_retries: int = 2,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        """Take the address of a server.

        Args:
            url: as `http://127.0.0.1:8000`.
            key: an API key, where the server wants one.
            timeout_s: seconds without a byte after which a call gives up.
            max_retries: of requests refused for now (429, 503), after the time the server says.
            http: a client of one's own to send with.
        """
        timeout = httpx.Timeout(timeout_s, connect=CONNECT_S)
        self._http = http or httpx.AsyncClient(timeout=timeout)
        self._url = url.rstrip("/")
        self._headers = headers_of(key)
        self._max_retries = max_retries

    async def generate(
        self,
        what: str | int | None = None,
        height: int | None = None,
        width: int | None = None,
        **more: Any,
    ) -> Picture:
        """One picture.

        Args:
            what: name or id of a class; None where `prompt` is given.
            height, width: pixels.
            more: other fields of `POST /generate`, as `seed` or `guidance_scale`.

        Raises:
            RequestFailed: the server refuses or fails.
            ServerUnreachable: nobody answers.
        """
        return (await self.generate_many(what, height, width, **more, num_images=1))[0]

    async def generate_many(
        self,
        what: str | int | None = None,
        height: int | None = None,
        width: int | None = None,
        **more: Any,
    ) -> tuple[Picture, ...]:
        """Several pictures (`num_images`) that differ only in their seed; see `generate`."""
        body = body_of(what, height, width, more)
        answer = await self._call("POST", "/generate", json=body, headers=JSON)
        return pictures_of(answer.json())

    async def stream(
        self,
        what: str | int | None = None,
        height: int | None = None,
        width: int | None = None,
        **more: Any,
    ) -> AsyncIterator[Event]:
        """The same as events: `Accepted`, `Progress`, `Preview` if asked for, `Completed`.

        Leaving the loop early cancels the request. Raises as `generate`; refusals are not retried.
        """
        body = body_of(what, height, width, more)
        lines = EventLines()
        headers = {**self._headers, **EVENTS}
        sending = self._http.stream("POST", f"{self._url}/generate", json=body, headers=headers)
        with reachable(self._url):
            async with sending as answer:
                if not answer.is_success:
                    await answer.aread()
                    raise failed(answer)
                async for line in answer.aiter_lines():
                    event = lines.read(line)
                    if event is not None:
                        yield event

    async def cancel(self, request_id: str) -> bool:
        """Cancel a request by the id of `Accepted`; False if there is none any more."""
        try:
            await self._call("DELETE", f"/requests/{request_id}")
        except RequestFailed as failure:
            if failure.status == 404:
                return False
            raise
        return True

    async def limits(self, model: str | None = None) -> dict[str, Any]:
        """What a model can be asked for: sizes, classes, samplers and defaults."""
        params = {} if model is None else {"model": model}
        return (await self._call("GET", "/limits", params=params)).json()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _call(self, method: str, path: str, **more: Any) -> httpx.Response:
        more["headers"] = {**self._headers, **more.get("headers", {})}
        tries = 0
        while True:
            with reachable(self._url):
                answer = await self._http.request(method, self._url + path, **more)
            if answer.is_success:
                return answer
            failure = failed(answer)
            wait_s = wait_before_retry(failure, tries)
            if wait_s is None or tries >= self._max_retries:
                raise failure
            tries += 1
            await asyncio.sleep(wait_s)
