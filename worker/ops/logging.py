"""Logs are events with fields: static snake_case names, ids bound once, one line a state change.

JSON when standard error is not a terminal. Foreign loggers go through the same formatter. Known secrets never get
out: their values are replaced wherever they stand in a line.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from worker.ops.warning_codes import code_of

REDACTED = "***"
_WITH_CODE = frozenset({"warning", "error", "critical"})


def configure_logging(
    *, level: str = "info", style: Literal["auto", "json", "console"] = "auto", secrets: Iterable[str] = ()
) -> None:
    """Set up structlog and the standard library's loggers for this process."""
    terminal = sys.stderr.isatty() if style == "auto" else style == "console"
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.ExtraAdder(),
    ]
    render: list[Processor]
    if terminal:
        render = [structlog.dev.ConsoleRenderer()]
    else:
        render = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            redact_secrets(secrets),
            *render,
        ],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for chatty in ("botocore", "aiobotocore", "aiohttp.access", "aiosqlite", "asyncio"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    # It tells a failed renewal with a traceback; the call that needed the credentials tells it as well.
    logging.getLogger("aiobotocore.credentials").setLevel(logging.ERROR)
    structlog.configure(
        processors=[*shared, add_code, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )


def add_code(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """A processor that gives each warning and error its stable code, unless it brings one, as a refusal does."""
    if event["level"] in _WITH_CODE and (code := code_of(str(event["event"]))):
        event.setdefault("code", code)
    return event


def redact_secrets(secrets: Iterable[str]) -> Processor:
    """A processor that replaces each secret in every string of an event, tracebacks included.

    `secrets` is read anew for each event: it may be a `KnownSecrets`, which grows."""

    def clean(value: Any, known: Sequence[str]) -> Any:
        if isinstance(value, str):
            for secret in known:
                value = value.replace(secret, REDACTED)
            return value
        if isinstance(value, Mapping):
            return {clean(key, known): clean(item, known) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [clean(item, known) for item in value]
        # Whatever else it is, both renderers may write it as its text or its representation.
        written = f"{value!s} {value!r}"
        return clean(repr(value), known) if any(secret in written for secret in known) else value

    def processor(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        if event.get("exc_info"):
            event = structlog.processors.format_exc_info(_, __, event)
        known = sorted({secret for secret in secrets if len(secret) >= 8}, key=len, reverse=True)
        return {clean(key, known): clean(value, known) for key, value in event.items()}

    return processor


Logger = structlog.typing.FilteringBoundLogger


def get_logger() -> Logger:
    """The logger of a module; ids are bound by `structlog.contextvars` or passed as fields."""
    logger: Logger = structlog.get_logger()
    return logger
