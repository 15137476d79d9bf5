"""The `nvidia-imex` process and `nvidia-imex-ctl`: starting, signalling, stopping, asking. Decides nothing."""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Final

from api.errors import HardwareError

log = logging.getLogger(__name__)

DAEMON_PROGRAM: Final = "nvidia-imex"
CONTROL_PROGRAM: Final = "nvidia-imex-ctl"
CONTROL_TIMEOUT_S: Final = 8.0


class ProgramMissing(HardwareError):
    """The driver's programs are not in this container."""

    reason = "ProgramMissing"


class ImexProcess:
    """At most one nvidia-imex at a time."""

    def __init__(self, config_path: Path, on_exit: Callable[[int], None]) -> None:
        """`on_exit` gets the exit status of a process that ended without being told to."""
        self._config_path = config_path
        self._on_exit = on_exit
        self._process: asyncio.subprocess.Process | None = None
        self._watcher: asyncio.Task[None] | None = None

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Raises ProgramMissing, OSError."""
        self._process = await _execute(DAEMON_PROGRAM, "-c", str(self._config_path))
        self._watcher = asyncio.create_task(self._watch(self._process))
        log.info("imex_started", extra={"pid": self._process.pid})

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        status = await process.wait()
        if process is self._process:
            self._process = None
            self._on_exit(status)

    def reload(self) -> None:
        """SIGUSR1: read TLS files again, connect to everybody anew."""
        self._signal(self._process, signal.SIGUSR1)
        log.info("imex_reloaded")

    async def stop(self, grace_s: float) -> None:
        """SIGTERM, and SIGKILL after `grace_s`."""
        process, self._process = self._process, None
        if process is None:
            return
        self._signal(process, signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_s):
                await process.wait()
        except TimeoutError:
            log.warning("imex_killed", extra={"pid": process.pid, "grace_s": grace_s})
            self._signal(process, signal.SIGKILL)
            await process.wait()
        log.info("imex_stopped", extra={"pid": process.pid, "status": process.returncode})

    @staticmethod
    def _signal(process: asyncio.subprocess.Process | None, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # it ended by itself: what the signal was for is moot
            if process is not None:
                process.send_signal(number)


async def read_domain(config_path: Path) -> str:
    """What `nvidia-imex-ctl -N -j` prints, which asks every node; "" when it fails or hangs. Raises ProgramMissing."""
    try:
        _, output = await _ask(config_path, "-N", "-j")
    except OSError as error:
        log.warning("imex_not_asked", extra={"error": str(error)})
        return ""
    return output


async def is_answering(config_path: Path) -> bool:
    """Whether the nvidia-imex of this node answers; its peers have no part in that. Raises ProgramMissing."""
    try:
        status, output = await _ask(config_path, "-q")
    except OSError as error:
        log.warning("imex_not_asked", extra={"error": str(error)})
        return True  # a node that is short of processes or memory says nothing against it
    return status == 0 and output.strip() != ""


async def _ask(config_path: Path, *question: str) -> tuple[int, str]:
    """Exit status and output; "" when it hangs. Raises ProgramMissing, OSError."""
    process = await _execute(CONTROL_PROGRAM, "-c", str(config_path), *question, capture=True)
    try:
        async with asyncio.timeout(CONTROL_TIMEOUT_S):
            output, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return -1, ""
    return process.returncode or 0, output.decode(errors="replace")


async def _execute(program: str, *arguments: str, capture: bool = False) -> asyncio.subprocess.Process:
    """Raises ProgramMissing, OSError."""
    pipe = asyncio.subprocess.PIPE if capture else None
    quiet = asyncio.subprocess.DEVNULL if capture else None
    try:
        return await asyncio.create_subprocess_exec(
            program, *arguments, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=quiet
        )
    except FileNotFoundError as error:
        raise ProgramMissing(
            f"{program} is not in this container: the claim's CDI device must bring it from the driver root; "
            "is CDI enabled in the container runtime, and the driver's IMEX package installed?"
        ) from error
