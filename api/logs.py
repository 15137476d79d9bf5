"""Logs as one JSON object a line on standard error, with the claim and operation that a line belongs to."""

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, Final

_CONTEXT: ContextVar[dict[str, Any] | None] = ContextVar("log_context", default=None)
_ENCODER: Final = json.JSONEncoder(default=str)  # json.dumps would make one at every line
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """`{"ts": ..., "level": ..., "msg": <event>, <context and extra fields>}`"""

    def format(self, record: logging.LogRecord) -> str:
        seconds = _format_second(int(record.created))
        line: dict[str, Any] = {
            "ts": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "msg": record.getMessage(),
            **(_CONTEXT.get() or {}),
        }
        line.update((key, value) for key, value in vars(record).items() if key not in _STANDARD)
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return _ENCODER.encode(line)


@lru_cache(maxsize=1)  # many lines fall into one second
def _format_second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def configure_logging(level: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # Neither is read by anybody, and finding the caller walks the stack at every line.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.getLogger("watchfiles").setLevel(logging.WARNING)


@contextmanager
def log_context(**fields: Any) -> Iterator[None]:
    """Add fields to every line logged inside, and in tasks started inside."""
    token = _CONTEXT.set({**(_CONTEXT.get() or {}), **fields})
    try:
        yield
    finally:
        _CONTEXT.reset(token)


def add_to_log_context(**fields: Any) -> None:
    """Add what is known only now to the lines that follow inside the innermost `log_context`."""
    _CONTEXT.set({**(_CONTEXT.get() or {}), **fields})
