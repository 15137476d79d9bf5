"""What the commands tell people: progress on standard error, failures as one sentence."""

import os
import sys
import time


class ClusterError(Exception):
    """A failure whose message tells its reader what to do; the command prints it without a traceback."""


_started = float(os.environ.get("PARTITA_STARTED") or time.time())


def say(message: str) -> None:
    print(f"[{int(time.time() - _started):4d}s] {message}", file=sys.stderr, flush=True)
