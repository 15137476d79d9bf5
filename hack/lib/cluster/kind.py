"""Clusters by kind: each node is a Docker container that runs systemd.

In Kubernetes the workers are called n1, n2 and so on, as in a local cluster; kind's names of their containers,
`<cluster>-worker` and so on, are accepted wherever a command takes a node. Unlike local nodes they share the machine's
boot id, the control plane has a node of its own, and kube-proxy is a pod.
"""

import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster import hardware, tools
from cluster.limits import raise_inotify_limit
from cluster.provider import COMPONENTS, SERVICES, Fault, check_known, docker_answers, run, write_provider
from cluster.report import ClusterError, say
from cluster.shape import (
    DEFAULT_NODE_TIMEOUT_S,
    Cluster,
    Shape,
    describe_difference,
    node_number,
    read_cluster,
    write_cluster,
)

DRIVER = "/run/nvidia/driver"
PATIENCE_S = 180
NO_SLOT = 0  # Docker chooses the addresses


def _kind(*arguments: str | Path, text: str | None = None) -> str:
    # The pinned one, whatever is installed: its release decides which Kubernetes its default image has.
    return run([tools.build("kind") / "kind", *arguments], text)


def _kubectl(state: Path, *arguments: str) -> str:
    return run([tools.build("kubernetes") / "kubectl", f"--kubeconfig={state / 'kubeconfig'}", *arguments])


def _script(container: str, script: str) -> str:
    return run(["docker", "exec", container, "timeout", str(PATIENCE_S), "sh", "-euc", script])


def _is_there(state: Path) -> bool:
    return state.name in _kind("get", "clusters").split()


def _containers(state: Path) -> list[str]:
    return sorted(_kind("get", "nodes", "--name", state.name).split())


def _containers_that_are(status: str, state: Path) -> list[str]:
    """`status` is Docker's: running, paused, exited."""
    wanted = ("--filter", f"label=io.x-k8s.kind.cluster={state.name}", "--filter", f"status={status}")
    return sorted(run(["docker", "ps", "--all", *wanted, "--format", "{{.Names}}"]).split())


def _worker(state: Path, node: str) -> str:
    """kind's name of a worker."""
    number = node_number(node)
    return f"{state.name}-worker" if number == 1 else f"{state.name}-worker{number}"


def _container(state: Path, node: str) -> str:
    names = {each: _worker(state, each) for each in _shape(state).node_names()}
    names["control-plane"] = f"{state.name}-control-plane"
    if node in names:
        return names[node]
    if node in names.values():
        return node
    raise ClusterError(f"there is no node {node!r}; the nodes are {', '.join(names)}")


def _shape(state: Path) -> Shape:
    cluster = read_cluster(state)
    if cluster is None:
        raise ClusterError(f"cluster {state.name!r} was never completed; `down` removes what there is")
    return cluster.shape


def up(state: Path, shape: Shape) -> None:
    if not docker_answers():
        raise ClusterError("kind needs a Docker daemon that answers `docker info`")
    if shape.kubernetes.count(".") == 1:
        raise ClusterError(
            f"kind has images of whole releases, which its release notes list, not of {shape.kubernetes}"
        )
    if shape.audit or shape.network_policies or shape.node_timeout_s != DEFAULT_NODE_TIMEOUT_S:
        say("kind has its own: --audit, --network-policies and --node-timeout are for the local provider, and ignored")
    existing, there = read_cluster(state), _is_there(state)
    if there and existing is None:
        raise ClusterError(
            f"kind has a cluster {state.name!r} that this checkout did not make: take another --name, or "
            f"`kind delete cluster --name {state.name}`"
        )
    if existing is not None and there and (state / "ready").exists():
        if existing.shape != shape:
            differences = describe_difference(existing.shape, shape)
            raise ClusterError(f"cluster {state.name!r} exists with {differences}; `down` removes it")
        _start(state)
        say(f"cluster {state.name!r} was there already")
        return
    _remove(state)
    _create(state, shape)
    (state / "ready").touch()
    say(f"cluster {state.name!r} is ready")


def _create(state: Path, shape: Shape) -> None:
    raise_inotify_limit()
    write_provider(state, "kind")
    write_cluster(Cluster(state, NO_SLOT, shape))
    for node in shape.node_names():
        driver = _driver(state, node)
        driver.mkdir(parents=True)
        hardware.install(shape, node, driver)
    image = f"kindest/node:v{shape.kubernetes}" if shape.kubernetes else os.environ.get("PARTITA_NODE_IMAGE", "")
    say("kind makes the cluster (a minute; the first time it fetches its node image, too)")
    _kind("create", "cluster", "--name", state.name, "--config", "-", "--kubeconfig", state / "kubeconfig",
          *(("--image", image) if image else ()), text=json.dumps(_config(state, shape)))  # fmt: skip
    _start(state)


def _config(state: Path, shape: Shape) -> dict[str, object]:
    """kind.x-k8s.io/v1alpha4. Without workers the control plane's node carries the pods."""
    gates = (pair.partition("=") for pair in filter(None, shape.feature_gates.split(",")))
    return {
        "apiVersion": "kind.x-k8s.io/v1alpha4",
        "kind": "Cluster",
        "nodes": [{"role": "control-plane"}, *(_worker_config(state, node) for node in shape.node_names())],
        "featureGates": {name: value.lower() == "true" for name, _, value in gates},
        "runtimeConfig": {"api/all": "true"},
    }


def _worker_config(state: Path, node: str) -> dict[str, object]:
    named = {"kind": "JoinConfiguration", "nodeRegistration": {"name": node}}
    return {
        "role": "worker",
        "extraMounts": [{"hostPath": str(_driver(state, node)), "containerPath": DRIVER}],
        "kubeadmConfigPatches": [json.dumps(named)],
    }


def _driver(state: Path, node: str) -> Path:
    return state / "nodes" / node / "driver"


def _start(state: Path) -> None:
    """Start what does not run, and wait for everything that makes a cluster usable."""
    for container in _containers_that_are("exited", state):
        run(["docker", "start", container])
    for container in _containers(state):
        _script(container, _AWAIT_BOOTED)
    patience = f"--timeout={PATIENCE_S}s"
    # kind itself waits for the control plane's node only. A pod that comes before its service account is refused.
    _kubectl(state, "wait", "--for=condition=Ready", "nodes", "--all", patience)
    _kubectl(state, "wait", "--for=create", "serviceaccount/default", patience)


def down(state: Path) -> None:
    _remove(state)
    say(f"cluster {state.name!r} is removed")


def _remove(state: Path) -> None:
    _kind("delete", "cluster", "--name", state.name, "--kubeconfig", state / "kubeconfig")
    if state.exists():
        shutil.rmtree(state)


def status(state: Path) -> str:
    return _kubectl(state, "get", "nodes", "--output=wide")


def log(state: Path, where: str, what: str) -> str:
    container = _container(state, where)
    if what in SERVICES[:2]:
        return run(["docker", "exec", container, "journalctl", "--no-pager", "--unit", what])
    # The rest are pods.
    check_known(what, (*SERVICES, *(COMPONENTS if where == "control-plane" else ())))
    name = f"kube-{what}" if what in COMPONENTS[1:] else what
    return _script(container, f"cat /var/log/containers/{name}-*")


def command_in(state: Path, node: str, command: Sequence[str]) -> list[str]:
    terminal = ["--tty"] if sys.stdin.isatty() and os.isatty(1) else []
    return ["docker", "exec", "--interactive", *terminal, _container(state, node), *command]


def load(state: Path, archive: Path) -> None:
    """Import an image on every node that is on."""
    nodes = _containers_that_are("running", state)
    _kind("load", "image-archive", archive, "--name", state.name, "--nodes", ",".join(nodes))
    say(f"{archive.name} is on {', '.join(nodes)}")


def disturb(state: Path, fault: Fault) -> None:
    container = _container(state, fault.where)
    if fault.where == "control-plane" and fault.what in COMPONENTS:
        check_known(fault.verb, tuple(_COMPONENT_SCRIPTS))
        name = fault.what if fault.what == "etcd" else f"kube-{fault.what}"
        _script(container, f"name={name}\n{_COMPONENT_SCRIPTS[fault.verb]}")
    elif fault.what:
        check_known(fault.what, SERVICES[:2])
        _script(container, f"service={fault.what}\n{_SERVICE_SCRIPTS[fault.verb]}")
    elif fault.verb in _NETWORK_SCRIPTS:
        _script(container, _NETWORK_SCRIPTS[fault.verb])
    else:
        command, status = _NODE_COMMANDS[fault.verb]
        if container not in _containers_that_are(status, state):
            run(["docker", command, container])
        _follow_power(state, fault, container)


def _follow_power(state: Path, fault: Fault, container: str) -> None:
    if fault.verb == "poweron":
        _script(container, _AWAIT_BOOTED)
    if fault.verb == "poweroff":
        shape = _shape(state)
        for node in shape.node_names():
            if _worker(state, node) == container:
                hardware.reboot(shape, node, _driver(state, node))


# Docker lets nobody mount below /proc before the container runs.
_AWAIT_BOOTED = f"""
    until systemctl is-active --quiet containerd kubelet; do sleep 0.2; done
    [ ! -d {DRIVER}/proc/driver ] || {DRIVER}/usr/bin/nvidia-simulator-mount {DRIVER}
"""
# The kubelet starts a component again as soon as it sees that it is dead, so it is halted meanwhile. (Taking the static
# pod's manifest away instead makes it wait minutes for an API server without etcd.) It goes on when all are to run.
_COMPONENT_SCRIPTS = {
    "kill": """
        mkdir -p /run/killed && touch /run/killed/$name
        systemctl kill --signal=STOP --kill-whom=main kubelet
        running="$(crictl ps --quiet --name "^$name$")"
        [ -z "$running" ] || crictl stop --timeout 0 $running
    """,
    "start": """
        rm -f /run/killed/$name
        [ -z "$(ls /run/killed 2>/dev/null)" ] || exit 0
        systemctl kill --signal=CONT --kill-whom=main kubelet
        until crictl ps --quiet --name "^$name$" | grep -q .; do sleep 0.2; done
    """,
}
_SERVICE_SCRIPTS = {
    # The service itself: containerd's group holds the shims of all pods. Then stopped, or systemd would start it again.
    "kill": "systemctl kill --signal=KILL --kill-whom=main $service; systemctl stop $service",
    "start": "systemctl start $service",
    "pause": "systemctl kill --signal=STOP --kill-whom=main $service",
    "resume": "systemctl kill --signal=CONT --kill-whom=main $service",
}
# Before and after everything else, so that what a node forwards for its pods is cut, too.
_NETWORK_SCRIPTS = {
    "cut": """nft -f - <<'RULES'
table inet cut
delete table inet cut
table inet cut {
    chain in { type filter hook prerouting priority -400; iifname "eth0" drop; }
    chain out { type filter hook postrouting priority 400; oifname "eth0" drop; }
}
RULES
""",
    "heal": "printf 'table inet cut\\ndelete table inet cut\\n' | nft -f -",
}
_NODE_COMMANDS = {  # Docker's, and what its container is afterwards
    "freeze": ("pause", "paused"),
    "thaw": ("unpause", "running"),
    "poweroff": ("kill", "exited"),
    "poweron": ("start", "running"),
}
