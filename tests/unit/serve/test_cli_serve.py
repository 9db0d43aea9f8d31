"""The serving process: it takes its port first, drains while it still answers, ends cleanly."""

import asyncio
import contextlib
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import httpx
import pytest
from prometheus_client import CollectorRegistry

from fit_serve.cli.serve import address_of, bind, deaf_to_signals, draining_server
from fit_serve.http_api import build_http_api
from fit_serve.service import GenerationService
from fit_serve.telemetry import Telemetry
from support.fake_engine import LIMITS, FakeEngine

ASKED = {"class": 1, "height": 32, "width": 32}


@dataclass
class Running:
    """A real server on loopback, in this process."""

    client: httpx.AsyncClient
    process: asyncio.Task[None]


@contextlib.asynccontextmanager
async def serving(engine: FakeEngine, drain: Callable[[], None]) -> AsyncIterator[Running]:
    """Serve on a free port; on leaving, wait until the server has ended, as it was told to."""
    service = GenerationService(engine, LIMITS, Telemetry(CollectorRegistry(), LIMITS.name))
    server = draining_server(build_http_api(service), drain)
    listener = bind("127.0.0.1", 0)
    with deaf_to_signals():
        async with asyncio.timeout(20):
            process = asyncio.create_task(server.serve(sockets=[listener]))
            while not server.started:
                await asyncio.sleep(0.005)
            async with httpx.AsyncClient(base_url=address_of(listener)) as client:
                yield Running(client, process)
            await process
    service.close()


def terminate(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


async def test_a_server_told_to_end_answers_while_it_drains() -> None:
    engine = FakeEngine(patient=True)
    drained = threading.Event()

    def drain() -> None:
        engine.is_ready = False
        assert drained.wait(10)

    async with serving(engine, drain) as running:
        assert (await running.client.get("/readyz")).status_code == 200
        answer = asyncio.create_task(running.client.post("/generate", json=ASKED))
        while not engine.submitted:
            await asyncio.sleep(0.005)
        terminate()
        while engine.is_ready:
            await asyncio.sleep(0.005)
        assert (await running.client.get("/readyz")).status_code == 503
        assert (await running.client.get("/livez")).status_code == 200
        engine.finish(engine.submitted[0].sequence_id)
        assert (await answer).status_code == 200
        assert not running.process.done()
        drained.set()


async def test_a_second_interrupt_does_not_wait_for_the_drain() -> None:
    engine = FakeEngine()
    draining, released = threading.Event(), threading.Event()

    def drain() -> None:
        draining.set()
        assert released.wait(10)

    async with serving(engine, drain) as running:
        terminate(signal.SIGINT)
        while not draining.is_set():
            await asyncio.sleep(0.005)
        terminate(signal.SIGINT)
        await running.process
        assert not released.is_set()
        released.set()


def test_a_signal_that_was_served_does_not_kill_afterwards() -> None:
    with deaf_to_signals():
        terminate()
        terminate(signal.SIGINT)


def test_a_taken_port_is_refused_by_name() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"host 127.0.0.1, port {port}: .*in use"):
            bind("127.0.0.1", port)


@pytest.mark.parametrize(("host", "shown"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")])
def test_an_address_is_shown_as_a_url(host: str, shown: str) -> None:
    if host == "::1" and not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    with bind(host, 0) as listener:
        port = listener.getsockname()[1]
        assert address_of(listener) == f"http://{shown}:{port}"
