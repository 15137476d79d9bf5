"""`python -m kubeletplugin.imexdaemon`: wiring."""

import asyncio
import json
import logging
import os
import signal
import sys
from typing import Final

from api.errors import PartitaError
from kubeletplugin.imexdaemon.daemon import Daemon
from kubeletplugin.imexdaemon.probes import Probes, State
from kubeletplugin.imexdaemon.settings import Settings, read_settings

log = logging.getLogger(__name__)

_STANDARD_FIELDS: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonLines(logging.Formatter):
    """One JSON object a line: the event's name and what it carries."""

    def format(self, record: logging.LogRecord) -> str:
        extra = {key: value for key, value in vars(record).items() if key not in _STANDARD_FIELDS}
        line = {"time": self.formatTime(record), "level": record.levelname, "event": record.getMessage(), **extra}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


async def run(settings: Settings) -> None:
    """Until SIGTERM or SIGINT."""
    state = State()
    daemon = Daemon(settings, state)
    server = await Probes(state).serve(settings.http_port)
    running = asyncio.create_task(daemon.run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, running.cancel)
    try:
        await running
    except asyncio.CancelledError:
        log.info("stopped")
    finally:
        server.close()


def main() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=os.environ.get("LOG_LEVEL", "INFO"), handlers=[handler])
    try:
        settings = read_settings(os.environ)
        asyncio.run(run(settings))
    except* PartitaError as errors:
        for error in errors.exceptions:
            print(f"Error: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(1)


if __name__ == "__main__":
    main()
