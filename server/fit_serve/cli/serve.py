"""`fit-serve serve`: the process that answers, from its flags to its last answer.

The flags are made from `Settings`, so that a setting is written once. On SIGTERM or SIGINT the
server first drains, still listening, so that probes and late clients are told; then it exits
with 0. A second SIGINT does not wait.
"""

import asyncio
import inspect
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from fit_serve.settings import REPEATED_FLAGS, Settings, flag_of, load_settings

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

LAST_ANSWERS_S = 5
"""Seconds that answers get to reach slow clients after the drain."""

_log = logging.getLogger(__name__)


def serve(**flags: str | bool | list[str] | None) -> None:
    """Serve a model over HTTP.

    Every flag is also an environment variable, as FIT_SERVE_PORT for --port; the flag wins.
    """
    settings = load_settings(
        {name: value for name, value in flags.items() if value not in (None, [])}
    )
    listener = bind(settings.host, settings.port)
    from fit_serve.app import assemble, http_app
    from fit_serve.cli.logs import configure_logs

    configure_logs(settings.log_level)
    assembly = assemble(settings, say=_log.info)
    server = draining_server(
        http_app(assembly), drain=lambda: assembly.engine.drain(settings.grace_time_s)
    )
    with deaf_to_signals():
        server.run(sockets=[listener])


def flags_of_settings() -> inspect.Signature:
    """Give the signature of `serve`: one flag for each setting, parsed by `Settings` alone."""
    return inspect.Signature(
        [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                annotation=parsed_as(name, field),
                default=option_of(name, field),
            )
            for name, field in Settings.model_fields.items()
        ]
    )


def parsed_as(name: str, field: FieldInfo) -> Any:
    """Give what the command line takes a flag for: a text, a yes or no, or several texts."""
    if name in REPEATED_FLAGS:
        return list[str] | None
    return bool | None if field.annotation is bool else str | None


def option_of(name: str, field: FieldInfo) -> Any:
    """Give the option of a setting; a yes or no is a pair of flags without a value."""
    explained = f"{field.description} {default_of(field)}".strip()
    if field.annotation is bool:
        both = f"{flag_of(name)}/{flag_of('no_' + name)}"
        return typer.Option(None, both, help=explained, show_default=False)
    return typer.Option(
        None, flag_of(name), help=explained, metavar=kind_of(name, field), show_default=False
    )


def kind_of(name: str, field: FieldInfo) -> str:
    """Say what a flag takes: its choices, or the kind of its value."""
    if name in REPEATED_FLAGS:
        return "TEXT"
    kinds = get_args(field.annotation) or (field.annotation,)
    if get_origin(field.annotation) is Literal:
        return "|".join(str(choice) for choice in kinds)
    names = {int: "INTEGER", float: "NUMBER", str: "TEXT"}
    return next((names[kind] for kind in kinds if kind in names), "INTEGER,...")


def default_of(field: FieldInfo) -> str:
    """Say the default of a setting; None is the choice of the part concerned."""
    return "" if field.default is None else f"Default: {field.default}."


serve.__signature__ = flags_of_settings()  # pyright: ignore[reportFunctionMemberAccess]


def bind(host: str, port: int) -> socket.socket:
    """Take the address before the slow part begins, without listening on it yet.

    Raises `ValueError` if it is taken or none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ValueError(f"host {host}, port {port}: {error.strerror}") from None
    return listener


def draining_server(app: "FastAPI", drain: Callable[[], None]) -> "uvicorn.Server":
    """Build a uvicorn server that calls `drain`, in a thread, before it stops listening."""
    import uvicorn

    class DrainingServer(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            for listener in sockets or []:
                _log.info("ready on %s", address_of(listener))

        async def main_loop(self) -> None:
            await super().main_loop()
            _log.info("draining: no new requests; those that run may finish")
            draining = asyncio.create_task(asyncio.to_thread(drain))
            while not draining.done() and not self.force_exit:
                await asyncio.sleep(0.05)
            _log.info("stopping")

    config = uvicorn.Config(
        app,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=LAST_ANSWERS_S,
    )
    return DrainingServer(config)


def address_of(listener: socket.socket) -> str:
    """Give the URL of a bound socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextmanager
def deaf_to_signals() -> Iterator[None]:
    """Ignore SIGTERM and SIGINT outside of the server's own handlers.

    uvicorn raises a signal again when it has served it, for whoever handled it before; a drained
    server has nothing left to be killed for, and exits with 0.
    """

    def ignore(*_: Any) -> None:
        pass

    before = {number: signal.signal(number, ignore) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
