"""How the serving process writes its log; modules write to `logging` as ever."""

import logging
from typing import TextIO


def configure_logs(level: str, stream: TextIO | None = None) -> None:
    """Write logs to a stream, standard error if None; call once, in the process that serves.

    At a terminal lines are for a person, anywhere else each is one JSON object. Every line of an
    HTTP request carries its `request_id`.
    """
    import structlog

    handler = logging.StreamHandler(stream)
    if handler.stream.isatty():
        # Not the default formatter of exceptions: it prints the values of local variables too.
        plain = structlog.dev.plain_traceback
        last = [structlog.dev.ConsoleRenderer(exception_formatter=plain)]
    else:
        last = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                structlog.contextvars.merge_contextvars,
                structlog.stdlib.add_log_level,
                structlog.stdlib.add_logger_name,
                structlog.stdlib.ExtraAdder(),
                structlog.processors.TimeStamper(fmt="iso"),
            ],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    # uvicorn tells at info level what we tell ourselves, in other words.
    logging.getLogger("uvicorn").setLevel(max(logging.WARNING, logging.root.level))
