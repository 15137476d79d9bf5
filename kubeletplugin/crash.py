"""Ending this program where a test wants it to."""

import os
import sys


class CrashPoint:
    """Ends the process right after one durable step, for tests of what a restart makes of it."""

    def __init__(self, after: str) -> None:
        self._after = after

    def __call__(self, step: str) -> None:
        if step == self._after:
            sys.stderr.write(f"PARTITA_CRASH_AFTER={step}\n")
            sys.stderr.flush()
            os._exit(137)
