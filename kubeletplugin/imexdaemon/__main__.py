"""`python -m kubeletplugin.imexdaemon`: wiring."""

import asyncio
import logging
import os
import signal
import sys

from api.errors import PartitaError
from api.logs import configure_logging
from kubeletplugin.imexdaemon.daemon import Daemon
from kubeletplugin.imexdaemon.probes import Probes, State
from kubeletplugin.imexdaemon.settings import Settings, read_settings

log = logging.getLogger(__name__)


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
    configure_logging(os.environ.get("LOG_LEVEL", "INFO"))
    try:
        settings = read_settings(os.environ)
        asyncio.run(run(settings))
    except* PartitaError as errors:
        for error in errors.exceptions:
            print(f"Error: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(1)


if __name__ == "__main__":
    main()
