"""What the machine's kernel grants to all clusters together."""

import os
from pathlib import Path

from cluster.report import say

INOTIFY_INSTANCES = Path("/proc/sys/fs/inotify/max_user_instances")
WANTED_INOTIFY_INSTANCES = 4096  # a node holds about a dozen


def raise_inotify_limit() -> None:
    """Each node's kubelet and containerd hold inotify instances, of which the kernel grants a user 128 by default.

    The limit is one for all clusters of the machine, so it does not depend on the size of this one.
    """
    if int(INOTIFY_INSTANCES.read_text()) >= WANTED_INOTIFY_INSTANCES:
        return
    if not os.access(INOTIFY_INSTANCES, os.W_OK):
        say(f"many nodes need more than {INOTIFY_INSTANCES} allows; only root can raise it")
        return
    INOTIFY_INSTANCES.write_text(str(WANTED_INOTIFY_INSTANCES))
    say(f"raised {INOTIFY_INSTANCES} to {WANTED_INOTIFY_INSTANCES}, until the machine restarts")
