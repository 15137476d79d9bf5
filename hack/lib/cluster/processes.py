"""Long-lived processes, known by their pid and start time, because pids are used again."""

import os
import signal
import subprocess
import time
from pathlib import Path

from paths import SCRIPTS

from cluster.report import ClusterError

GO = {"GOGC": "400"}
"""For Go programs: memory is there, and processors are short. It takes a sixth off the API server's time."""

ENVIRONMENT = {
    **GO,
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
}


def start(record: Path, procs_files: list[Path], command: list[str], log: Path) -> int:
    """Start a process that joins the groups first and outlives us; its pid goes into `record`."""
    record.parent.mkdir(parents=True, exist_ok=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    joining = ["bash", str(SCRIPTS / "join.sh"), *map(str, procs_files), "--", *command]
    with log.open("ab") as out:
        process = subprocess.Popen(
            joining, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd="/", env=ENVIRONMENT, start_new_session=True
        )
    record.write_text(f"{process.pid} {_start_time(process.pid)}")
    return process.pid


def running(record: Path) -> int | None:
    """The pid, while the recorded process lives."""
    try:
        pid, started = record.read_text().split()
    except (FileNotFoundError, ValueError):
        return None
    return int(pid) if _start_time(int(pid)) == started else None


def kill(record: Path) -> None:
    """SIGKILL, and wait until it is gone. Not SIGTERM: a draining apiserver holds its port for more than a minute."""
    pid = running(record)
    if pid is None:
        return
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while running(record) is not None:
        if time.monotonic() > deadline:
            raise ClusterError(f"process {pid} ({record.name}) does not die")
        time.sleep(0.01)


def child(pid: int) -> int | None:
    """The first child of a process."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # a process that ended meanwhile
        if int(fields[1]) == pid:
            return int(stat.parent.name)
    return None


def _start_time(pid: int) -> str:
    """proc(5) stat, field 22; empty when the process is gone, or is a zombie whose parent has not looked yet."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if fields[0] == "Z" else fields[19]
