"""The HTTP door on a fake engine, and a way to knock without a client library."""

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message

from fit_serve.http_api import build_http_api
from fit_serve.service import GenerationService, ServiceConfig
from fit_serve.telemetry import Telemetry
from support.fake_engine import LIMITS, FakeEngine

JSON_HEADERS = {"content-type": "application/json"}


def build_app(engine: FakeEngine, config: ServiceConfig | None = None) -> ASGIApp:
    telemetry = Telemetry(CollectorRegistry(), LIMITS.name)
    return build_http_api(GenerationService(engine, LIMITS, telemetry, config))


def client_of(engine: FakeEngine) -> TestClient:
    return TestClient(build_app(engine))


@dataclass
class Knock:
    """One raw ASGI request, whose client stays until `leaves` is set; what it got is in `sent`."""

    path: str
    body: dict[str, Any]
    accept: str = "*/*"
    leaves: asyncio.Event = field(default_factory=asyncio.Event)
    sent: list[Message] = field(default_factory=list)

    async def on(self, app: ASGIApp) -> None:
        """Send the request to an application and wait until it has answered."""
        arrives = [{"type": "http.request", "body": json.dumps(self.body).encode()}]
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": self.path,
            "raw_path": self.path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [
                (b"content-type", b"application/json"),
                (b"accept", self.accept.encode()),
            ],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
        }

        async def receive() -> Message:
            if arrives:
                return arrives.pop(0)
            await self.leaves.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            self.sent.append(message)

        await app(scope, receive, send)
