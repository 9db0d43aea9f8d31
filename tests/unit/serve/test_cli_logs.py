"""One log, two forms: for a person at a terminal, for a machine anywhere else."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from fit_serve.cli.logs import configure_logs


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    before = (logging.root.handlers[:], logging.root.level, logging.getLogger("uvicorn").level)
    yield
    logging.root.handlers[:] = before[0]
    logging.root.setLevel(before[1])
    logging.getLogger("uvicorn").setLevel(before[2])


def write_some() -> None:
    log = logging.getLogger("fit_serve.some.module")
    with structlog.contextvars.bound_contextvars(request_id="req-1"):
        log.info("answered %s", "quickly", extra={"status": 200})
        log.debug("too small to tell")
        secret = "local-" + "secret"
        try:
            raise RuntimeError("boom")
        except RuntimeError:
            log.exception("bug with a %s", secret[:5])
    logging.getLogger("uvicorn.error").info("Waiting for application startup.")


def test_a_machine_gets_one_json_object_a_line_with_the_request_id() -> None:
    stream = io.StringIO()
    configure_logs("info", stream)
    write_some()
    answered, bug = (json.loads(line) for line in stream.getvalue().splitlines())
    expected: dict[str, Any] = {"event": "answered quickly", "level": "info", "status": 200}
    assert expected.items() <= answered.items()
    assert answered["logger"] == "fit_serve.some.module"
    assert answered["request_id"] == bug["request_id"] == "req-1"
    assert "RuntimeError: boom" in bug["exception"]


def test_a_person_gets_lines_without_the_values_of_variables() -> None:
    stream = Terminal()
    configure_logs("info", stream)
    write_some()
    text = stream.getvalue()
    assert "answered quickly" in text
    assert "RuntimeError: boom" in text
    assert "local-secret" not in text
    assert "{" not in text.splitlines()[0]


def test_what_is_below_the_level_is_not_written() -> None:
    stream = io.StringIO()
    configure_logs("error", stream)
    write_some()
    assert len(stream.getvalue().splitlines()) == 1
