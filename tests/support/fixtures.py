"""Clusters that live as long as a test session. PARTITA_KEEP_CLUSTERS=1 leaves them for the next one."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import yaml

from tests.support.cluster import CACHE, Cluster


def session_cluster(name: str, *options: str) -> Iterator[Cluster]:
    """For `yield from` in a session fixture: up with these options, or in use again where a session has left it."""
    cluster = Cluster(name)
    kept = bool(os.environ.get("PARTITA_KEEP_CLUSTERS"))
    with _one_session(name):
        try:
            if not kept:
                cluster.stop()  # what a session that was killed has left
            cluster.start(*options)
            yield cluster
        finally:
            if kept:
                cluster.close()
            else:
                cluster.stop()


def resync_soon(cluster: Cluster, node: str, **more: Any) -> None:
    """Kubelets look at a pod that failed again after 60 to 90 s (syncFrequency 1m); here after 5 to 8 s.

    `more`: further fields of the KubeletConfiguration.
    """
    # That of a local node, and that of a node of kind.
    script = "ls /etc/kubernetes/kubelet.json /var/lib/kubelet/config.yaml 2>/dev/null; true"
    (file,) = cluster.in_node(node, "sh", "-c", script).split()
    config = yaml.safe_load(cluster.in_node(node, "cat", file))
    wanted = {**config, "syncFrequency": "5s", **more}
    if config != wanted:
        cluster.write_in_node(node, file, json.dumps(wanted))
        cluster.run("kill", node, "kubelet")
        cluster.run("start", node, "kubelet")
        cluster.wait_node(node)


@contextmanager
def _one_session(name: str) -> Iterator[None]:
    """A second session in the same checkout waits for its turn with the cluster of this name."""
    folder = CACHE / "clusters"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{name}.session").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
