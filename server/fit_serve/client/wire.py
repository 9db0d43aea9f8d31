"""What both clients send and read: bodies, headers and lines of events. Does no input or output."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fit_serve.client.answers import Event, event_of
from fit_serve.client.trouble import failure_of

JSON = {"accept": "application/json"}
EVENTS = {"accept": "text/event-stream"}
TIMEOUT_S = 600.0
CONNECT_S = 10.0


def headers_of(key: str | None) -> dict[str, str]:
    """Headers of every request."""
    return {} if key is None else {"authorization": f"Bearer {key}"}


def body_of(
    what: str | int | None, height: int | None, width: int | None, more: Mapping[str, Any]
) -> dict[str, Any]:
    """The body of a request; what is None is left out, so that the server's default holds."""
    fields = {"class": what, "height": height, "width": width, **more}
    return {name: value for name, value in fields.items() if value is not None}


class EventLines:
    """Lines of a stream of events, one after another, to events."""

    def __init__(self) -> None:
        self._name = ""

    def read(self, line: str) -> Event | None:
        """Take a line; an event where one is complete.

        Raises:
            RequestFailed: the server told of a failure.
        """
        field, _, value = line.partition(": ")
        if field == "event":
            self._name = value
        if field != "data":
            return None
        data = json.loads(value)
        if self._name == "error":
            raise failure_of(data, 0, {})
        return event_of(self._name, data)
