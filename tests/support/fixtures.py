"""Clusters that live as long as a test session. PARTITA_KEEP_CLUSTERS=1 leaves them for the next one."""

import os
from collections.abc import Iterator

from tests.support.cluster import Cluster


def session_cluster(name: str, *options: str) -> Iterator[Cluster]:
    """For `yield from` in a session fixture: up with these options, or in use again when it is there already."""
    cluster = Cluster(name)
    try:
        cluster.start(*options)
        yield cluster
    finally:
        if os.environ.get("PARTITA_KEEP_CLUSTERS"):
            cluster.close()
        else:
            cluster.stop()
