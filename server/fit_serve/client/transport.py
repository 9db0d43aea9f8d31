"""What httpx tells, in the client's own words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from fit_serve.client.trouble import RequestFailed, ServerUnreachable, failure_of


@contextmanager
def reachable(url: str) -> Iterator[None]:
    """Raise `ServerUnreachable` where httpx finds nobody, or loses the connection."""
    try:
        yield
    except httpx.TransportError as error:
        raise ServerUnreachable(f"{url}: {error or type(error).__name__}") from error


def failed(answer: httpx.Response) -> RequestFailed:
    """Read an answer that is no success; its body has been read."""
    try:
        body = answer.json()
    except ValueError:
        body = None
    return failure_of(body, answer.status_code, answer.headers)
