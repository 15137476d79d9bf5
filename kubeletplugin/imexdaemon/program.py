"""Wiring of the daemon."""

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Final

from api.clique import DAEMON_HTTP_PORT
from api.errors import PartitaError
from api.logs import configure_logging
from kubeletplugin.imexdaemon.daemon import Daemon
from kubeletplugin.imexdaemon.probes import Probes, State
from kubeletplugin.imexdaemon.settings import Settings, read_settings

log = logging.getLogger(__name__)

TERMINATION_LOG: Final = Path("/dev/termination-log")  # Container.terminationMessagePath


async def run(settings: Settings) -> None:
    """Until SIGTERM or SIGINT."""
    state = State()
    daemon = Daemon(settings, state)
    server = await Probes(state).serve(DAEMON_HTTP_PORT)
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


def start() -> None:
    """The whole program. Exits with status 1 when it cannot go on, and says why."""
    configure_logging(os.environ.get("LOG_LEVEL", "INFO"))
    try:
        settings = read_settings(os.environ)
        asyncio.run(run(settings))
    except* PartitaError as errors:
        told = "\n".join(f"Error: {error}" for error in errors.exceptions)
        print(told, file=sys.stderr)  # noqa: T201
        if TERMINATION_LOG.exists():
            TERMINATION_LOG.write_text(told)  # the kubelet puts it into the pod's status, where the controller finds it
        sys.exit(1)
