"""The files of the daemon: what nvidia-imex reads, and the domain's state for the workload's pods."""

import fcntl
import json
import os
from pathlib import Path
from typing import Final

from api.clique import DAEMON_LOCK_FILE, DAEMON_STATUS_FILE
from kubeletplugin.disk import replace_whole, write_whole
from kubeletplugin.imexdaemon.config import (
    NodeTable,
    Tls,
    TlsFiles,
    choose_server_name,
    render_config,
    render_hosts,
    render_node_list,
)
from kubeletplugin.imexdaemon.readiness import Readiness
from kubeletplugin.imexdaemon.settings import Settings

CONFIG_FILE: Final = "imexd.cfg"
NODE_LIST_FILE: Final = "nodes.cfg"
TLS_FOLDER: Final = "tls"


def config_path(settings: Settings) -> Path:
    return settings.directory / CONFIG_FILE


def is_there(path: Path) -> bool:
    return path.exists()


def hold_lock(settings: Settings) -> int:
    """Let the node plugin see that we live, until the descriptor that this returns is closed. Raises OSError.

    The file is locked before it has its name: whoever finds it unlocked knows that its daemon has died.
    """
    path = settings.directory / Path(DAEMON_LOCK_FILE).name
    temporary = path.with_name(f".{path.name}.new")
    fd = -1
    try:
        settings.directory.mkdir(parents=True, exist_ok=True)
        fd = os.open(temporary, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        temporary.replace(path)
    except OSError:
        if fd >= 0:
            os.close(fd)
        path.unlink(missing_ok=True)  # of a daemon before us: we are not dead
        raise
    return fd


def write_imex_files(settings: Settings, table: NodeTable, tls: Tls | None) -> None:
    """Everything that nvidia-imex reads when it starts."""
    settings.directory.mkdir(parents=True, exist_ok=True)
    node_list = settings.directory / NODE_LIST_FILE
    replace_whole(node_list, render_node_list(table).encode(), durable=False)
    config = render_config(str(node_list), settings.address, _write_tls(settings, tls) if tls else None)
    replace_whole(config_path(settings), config.encode(), durable=False)
    write_hosts(settings, table)


def write_changes(settings: Settings, table: NodeTable, tls: Tls | None) -> None:
    """What nvidia-imex reads again at SIGUSR1."""
    if tls:
        _write_tls(settings, tls)
    write_hosts(settings, table)


def _write_tls(settings: Settings, tls: Tls) -> TlsFiles:
    """All or none: on a full disk certificate and key still belong together."""
    folder = settings.directory / TLS_FOLDER
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    contents = {
        folder / "ca.crt": tls.authorities,
        folder / "tls.crt": tls.certificate,
        folder / "tls.key": tls.key,
    }
    for path, text in contents.items():
        write_whole(f"{path}.new", text.encode(), durable=False, private=True)
    for path in contents:
        Path(f"{path}.new").replace(path)
    authority, certificate, key = map(str, contents)
    return TlsFiles(authority, certificate, key, choose_server_name(use_names=settings.use_names))


def write_hosts(settings: Settings, table: NodeTable) -> None:
    """In place: the kubelet mounts this one file into the container, so it cannot be replaced by another."""
    path = settings.hosts_path
    current = path.read_text() if path.exists() else ""
    wanted = render_hosts(current, table)
    if wanted != current:
        with path.open("r+" if path.exists() else "w") as file:
            file.write(wanted)
            file.truncate()


def write_status(settings: Settings, table: NodeTable | None, readiness: Readiness) -> None:
    """For the node plugin, and for the pods of the domain on this node: a barrier for jobs that want everybody.

    Raises OSError, and then leaves no file: what is not true any more must not be believed.
    """
    path = settings.directory / DAEMON_STATUS_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    peers = table.peers if table else frozenset()
    status = {
        "computeDomain": settings.domain_uid,
        "cliqueID": settings.clique_id,
        "node": settings.node,
        "address": settings.address,
        "index": table.own_index if table else None,
        "ready": readiness.ready,
        "message": readiness.message,
        "peers": sorted(peers),
        "connected": sorted(readiness.connected & peers),
    }
    text = json.dumps(status, indent=2) + "\n"
    if not path.exists() or path.read_text() != text:
        try:
            replace_whole(path, text.encode(), durable=False)
        except OSError:
            path.unlink(missing_ok=True)
            raise
