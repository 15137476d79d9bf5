"""Control groups of a cluster, for cgroup v1 (a hierarchy for each controller) and v2 (one for all).

All processes of a cluster are in its group from their first instruction on. `down` kills by group, so it needs no
record of process ids, and nothing outlives it even when `up` was killed half-way.
"""

import errno
import os
import signal
import time
from pathlib import Path

from cluster.report import ClusterError

MOUNT = Path("/sys/fs/cgroup")
CONTROLLERS = ("cpuset", "cpu", "io", "memory", "hugetlb", "pids")  # v2, what kubelet wants


def unified() -> bool:
    return (MOUNT / "cgroup.controllers").exists()


def hierarchies() -> list[Path]:
    if unified():
        return [MOUNT]
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    found = sorted({Path(fields[1]) for fields in mounts if fields[2] == "cgroup"})
    if not found:
        raise ClusterError(f"no control groups are mounted below {MOUNT}")
    return found


def create(group: str) -> list[Path]:
    """Make the group (a path such as `ptab12cd/n1`) in each hierarchy; the files by which a process joins it."""
    files = []
    for hierarchy in hierarchies():
        folder = hierarchy
        for part in group.split("/"):
            if unified():
                _enable_controllers(folder)
            parent, folder = folder, folder / part
            folder.mkdir(exist_ok=True)
            for name in ("cpuset.cpus", "cpuset.mems"):
                if not unified() and (folder / name).exists() and not (folder / name).read_text().strip():
                    (folder / name).write_text((parent / name).read_text())
        files.append(folder / "cgroup.procs")
    return files


def _enable_controllers(folder: Path) -> None:
    offered = (folder / "cgroup.controllers").read_text().split()
    enabled = (folder / "cgroup.subtree_control").read_text().split()
    for controller in CONTROLLERS:
        if controller in offered and controller not in enabled:
            (folder / "cgroup.subtree_control").write_text(f"+{controller}")


def kill(group: str, patience_s: float = 30.0) -> None:
    """SIGKILL everything in the group and below, until nothing is left."""
    for folder, _, _ in os.walk(_freezer(group)):
        _set_frozen(Path(folder), False)  # a frozen process does not die
    deadline = time.monotonic() + patience_s
    while pids := _members(group):
        if time.monotonic() > deadline:
            raise ClusterError(f"processes of control group {group} do not die: {sorted(pids)}")
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue  # it ended between the listing and the signal
        time.sleep(0.02)


def _members(group: str) -> set[int]:
    found: set[int] = set()
    for hierarchy in hierarchies():
        for folder, _, _ in os.walk(hierarchy / group):
            try:
                found.update(int(line) for line in Path(folder, "cgroup.procs").read_text().split())
            except FileNotFoundError:
                continue  # a container's group, removed just now
    return found


def remove(group: str, patience_s: float = 10.0) -> None:
    """The folders of a group whose processes were killed, innermost first."""
    deadline = time.monotonic() + patience_s
    for hierarchy in hierarchies():
        for folder, _, _ in os.walk(hierarchy / group, topdown=False):
            while not _removed(Path(folder)):
                if time.monotonic() > deadline:
                    raise ClusterError(f"control group {folder} does not become empty")
                time.sleep(0.02)


def _removed(folder: Path) -> bool:
    """False: a process in it, listed no longer, has not quite ended."""
    try:
        folder.rmdir()
    except OSError as error:
        if error.errno == errno.EBUSY:
            return False
        raise
    return True


def freeze(group: str, frozen: bool) -> None:
    _set_frozen(_freezer(group), frozen)


def _freezer(group: str) -> Path:
    return (MOUNT if unified() else MOUNT / "freezer") / group


def _set_frozen(folder: Path, frozen: bool) -> None:
    name, words = ("cgroup.freeze", ("0", "1")) if unified() else ("freezer.state", ("THAWED", "FROZEN"))
    if (folder / name).exists():
        (folder / name).write_text(words[frozen])
