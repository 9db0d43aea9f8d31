"""A whole server on a bundle, without a socket."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
from fastapi import FastAPI

from fit_serve.app import assemble, http_app
from fit_serve.settings import load_settings


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A whole server on the toy bundle, without a socket."""
    flags = {"model": str(folder), "device": "cpu", "max_num_seqs": 5, "max_queued_requests": 20}
    app: FastAPI = http_app(assemble(load_settings(flags)))
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://toy", timeout=60) as client,
    ):
        yield client
