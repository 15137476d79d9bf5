"""A cluster on this machine's own kernel: `up`, `down` and what can be done to it in between."""

import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from paths import CACHE, IMAGES, ROOT

from cluster import controlplane, faults, groups, network, nodes, policies, processes, tools
from cluster.api import Api, ready_nodes
from cluster.limits import raise_inotify_limit
from cluster.provider import COMPONENTS, SERVICES, Fault, check_known, write_provider
from cluster.report import ClusterError, say
from cluster.shape import Cluster, Shape, describe_difference, identity, read_cluster, write_cluster

BASE_IMAGES = ("pause", "busybox")
# Links and namespaces; kube-proxy; unshare and nsenter.
DEBIAN_PACKAGES = ("iproute2", "nftables", "util-linux", "mount")
READY_PATIENCE_S = 180.0


@contextmanager
def exclusively(state: Path) -> Iterator[None]:
    """One `up`, `down` or power switch at a time for a cluster."""
    lock = state.parent / f".{state.name}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def need(state: Path) -> Cluster:
    cluster = read_cluster(state)
    if cluster is None:
        raise ClusterError(f"there is no cluster {state.name!r}; `hack/cluster up` makes one")
    return cluster


def up(state: Path, shape: Shape) -> None:
    shape = replace(shape, kubernetes=tools.resolve(shape.kubernetes))
    if os.geteuid() != 0:
        raise ClusterError(
            "a local cluster makes network and mount namespaces: run this as root, or use --provider kind"
        )
    prepare(shape)
    with exclusively(state):
        existing = read_cluster(state)
        if existing is not None and (state / "ready").exists():
            if existing.shape != shape:
                differences = describe_difference(existing.shape, shape)
                raise ClusterError(f"cluster {state.name!r} exists with {differences}; `down` removes it")
            _resume(existing)
            return
        _remove(state)
        _create(state, shape)
        (state / "ready").touch()


def prepare(shape: Shape) -> None:
    """Build what a cluster of this shape runs, unless it is there."""
    shape = replace(shape, kubernetes=tools.resolve(shape.kubernetes))
    tools.run_bash(f"need_debian_packages {' '.join(DEBIAN_PACKAGES)}", ROOT)
    tools.build("etcd")
    tools.build("kubernetes", shape.kubernetes)
    if shape.nodes:
        for name in ("containerd", "runc", "cni"):
            tools.build(name)
        if shape.network_policies:
            policies.prepare()
        _build_images()


def _build_images() -> None:
    if subprocess.run([ROOT / "hack" / "image", *BASE_IMAGES], stdout=subprocess.DEVNULL, check=False).returncode != 0:
        raise ClusterError(f"`hack/image {' '.join(BASE_IMAGES)}` failed")


def base_archives() -> list[Path]:
    return [IMAGES / f"{name}.tar" for name in BASE_IMAGES]


def _create(state: Path, shape: Shape) -> None:
    raise_inotify_limit()
    write_provider(state, "local")
    with network.choosing_addresses():
        cluster = Cluster(state, network.choose_slot(None), shape)
        write_cluster(cluster)
        network.create_bridge(cluster)
    controlplane.write_identities(cluster)
    for component in COMPONENTS[:2]:
        controlplane.start(cluster, component)
    for node in shape.node_names():
        network.connect_node(cluster, node)
        nodes.create(cluster, node)
        nodes.power_on(cluster, node, base_archives())
    _await(cluster)


def _resume(cluster: Cluster) -> None:
    """Start what is not running: nothing, after a plain second `up`; everything, after a restart of the machine."""
    if not (Path("/sys/class/net") / network.bridge(cluster.identity)).exists():
        with network.choosing_addresses():
            if network.choose_slot(cluster.slot) != cluster.slot:
                raise ClusterError(f"the addresses of cluster {cluster.state.name!r} are taken by another network now")
            network.create_bridge(cluster)
        for node in cluster.shape.node_names():
            network.connect_node(cluster, node)
    stopped = [node for node in cluster.shape.node_names() if not nodes.is_on(cluster, node)]
    for node in stopped:
        _restore_node(cluster, node)
    _await(cluster)
    say(f"cluster {cluster.state.name!r} was there already")


def _restore_node(cluster: Cluster, node: str) -> None:
    nodes.power_off(cluster, node)
    nodes.power_on(cluster, node, base_archives())


def _await(cluster: Cluster) -> None:
    """Start what waits for the apiserver, then wait for everything that makes a cluster usable."""
    api = Api(cluster.kubeconfig)
    for component in COMPONENTS[:2]:
        controlplane.start(cluster, component)
    _until(cluster, "the API server is ready", lambda: api.get("/readyz")[0] == 200)
    for component in COMPONENTS:
        controlplane.start(cluster, component)
    # A pod that comes before its service account is refused.
    account = "/api/v1/namespaces/default/serviceaccounts/default"
    _until(cluster, "the controller manager works", lambda: api.get(account)[0] == 200)
    if cluster.shape.nodes:
        wanted = set(cluster.shape.node_names())
        _until(cluster, f"every node is Ready ({len(wanted)})", lambda: wanted <= _ready(api))


def _ready(api: Api) -> set[str]:
    status, body = api.get("/api/v1/nodes")
    return ready_nodes(body["items"]) if status == 200 else set()


def _until(cluster: Cluster, what: str, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + READY_PATIENCE_S
    while not condition():
        controlplane.check_alive(cluster)
        nodes.check_alive(cluster)
        if time.monotonic() > deadline:
            raise ClusterError(f"waited {READY_PATIENCE_S:.0f} s in vain until {what}; the logs are in {cluster.logs}")
        time.sleep(0.1)
    say(what)


def down(state: Path) -> None:
    """Remove everything that a cluster of this place may have left, finished or not."""
    with exclusively(state):
        found = state.exists()
        _remove(state)
    say(f"cluster {state.name!r} is removed" if found else f"there was no cluster {state.name!r}")


def _remove(state: Path) -> None:
    name = identity(state)
    groups.kill(name)
    groups.remove(name)
    network.remove(name)
    if state.exists():
        shutil.rmtree(state)


def disturb(state: Path, fault: Fault) -> None:
    with exclusively(state):
        faults.apply(need(state), fault)


def command_in(state: Path, node: str, command: Sequence[str]) -> list[str]:
    cluster = need(state)
    return nodes.command_in(cluster, cluster.check_node(node), command)


def log(state: Path, where: str, what: str) -> str:
    cluster = need(state)
    if where == "control-plane":
        check_known(what, (*COMPONENTS, "audit"))
        path = cluster.logs / f"{what}.log"
    else:
        check_known(what, (*SERVICES, "kube-router"))
        path = cluster.node_dir(cluster.check_node(where)) / "var" / "log" / f"{what}.log"
    if not path.exists():
        raise ClusterError(f"{what} of {where} has written no log yet ({path})")
    return path.read_text(errors="replace")


def load(state: Path, archive: Path) -> None:
    """Import an image on every node that is on."""
    cluster = need(state)
    if not archive.is_file():
        raise ClusterError(f"there is no archive {archive}; `hack/image` builds the project's into {CACHE / 'images'}")
    for node in cluster.shape.node_names():
        if nodes.is_on(cluster, node):
            nodes.load(cluster, node, archive.resolve())
            say(f"{archive.name} is on {node}")


def status(state: Path) -> str:
    cluster = need(state)
    lines = [f"cluster {cluster.state.name}: Kubernetes {cluster.shape.kubernetes}, {cluster.server}"]
    for component in COMPONENTS:
        pid = processes.running(controlplane.record(cluster, component))
        lines.append(f"  {component:<20} {f'pid {pid}' if pid else 'dead'}")
    ready = _ready(Api(cluster.kubeconfig))
    for node in cluster.shape.node_names():
        condition = "off" if not nodes.is_on(cluster, node) else "Ready" if node in ready else "NotReady"
        profile = cluster.shape.profile(node) or "no simulated hardware"
        lines.append(f"  {node:<20} {condition}, {cluster.node_address(node)}, {profile}")
    return "\n".join(lines)
