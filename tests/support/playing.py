"""What plays a part of the cluster in a thread, for as long as a test needs it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar


class Player(Protocol):
    def run(self) -> None:
        """Until `stop`."""

    def stop(self) -> None: ...


P = TypeVar("P", bound=Player)


@contextmanager
def play(player: P) -> Iterator[P]:
    """Runs while the block does."""
    thread = threading.Thread(target=player.run, daemon=True)
    thread.start()
    try:
        yield player
    finally:
        player.stop()
        thread.join()
