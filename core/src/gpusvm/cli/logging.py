"""Configure structlog: the one place that does. Core only logs, and a program that uses core decides for itself."""

import sys
from typing import Literal, TypeAlias

__all__ = ["LogLevel", "configure_logging"]

LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]


def configure_logging(level: LogLevel, *, as_json: bool) -> None:
    """Log what is at least `level` to standard error, for people or as one JSON object a line."""
    import structlog

    timestamp = structlog.processors.TimeStamper(fmt="iso" if as_json else "%H:%M:%S")
    render: structlog.typing.Processor
    if as_json:
        render = structlog.processors.JSONRenderer()
    else:
        render = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    structlog.configure(
        processors=[structlog.processors.add_log_level, timestamp, structlog.processors.format_exc_info, render]
        if as_json
        else [structlog.processors.add_log_level, timestamp, render],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
