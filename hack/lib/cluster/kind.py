"""Clusters by kind: each node is a Docker container that runs systemd."""

import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster import hardware, tools
from cluster.provider import COMPONENTS, SERVICES, Fault, check_known, docker_answers, run, write_provider
from cluster.report import ClusterError, say
from cluster.shape import DEFAULT_NODE_TIMEOUT_S, Shape

MANIFESTS = "/etc/kubernetes/manifests"  # kubelet runs the control plane's static pods from there
PARKED = "/etc/kubernetes/parked"


def _kind(*arguments: str | Path, text: str | None = None) -> str:
    program = shutil.which("kind") or tools.build("kind") / "kind"
    return run([program, *arguments], text)


def _nodes(state: Path) -> list[str]:
    return sorted(_kind("get", "nodes", "--name", state.name).split())


def _container(state: Path, node: str) -> str:
    """`n1` is the first worker, `control-plane` the control plane; kind's own names are accepted too."""
    number = node.removeprefix("n")
    name = f"{state.name}-{'worker' if node == 'n1' else f'worker{number}' if number.isdigit() else node}"
    known = _nodes(state)
    for candidate in (node, name):
        if candidate in known:
            return candidate
    raise ClusterError(f"there is no node {node!r}; the nodes are {', '.join(known)}")


def up(state: Path, shape: Shape) -> None:
    if not docker_answers():
        raise ClusterError("kind needs a Docker daemon that answers `docker info`")
    if state.name in _kind("get", "clusters").split():
        say(f"cluster {state.name!r} was there already")
        return
    if shape.audit or shape.node_timeout_s != DEFAULT_NODE_TIMEOUT_S:
        say("kind has its own: --audit and --node-timeout are for the local provider, and ignored")
    write_provider(state, "kind")
    for node in shape.node_names():
        driver = state / "nodes" / node / "driver"
        driver.mkdir(parents=True, exist_ok=True)
        hardware.install(shape, node, driver)
    image = ("--image", f"kindest/node:v{shape.kubernetes}") if shape.kubernetes else ()
    config = json.dumps(_config(state, shape))
    _kind("create", "cluster", "--name", state.name, "--config", "-", "--wait", "180s",
          "--kubeconfig", state / "kubeconfig", *image, text=config)  # fmt: skip
    say(f"cluster {state.name!r} is ready")


def _config(state: Path, shape: Shape) -> dict[str, object]:
    """kind.x-k8s.io/v1alpha4. Without workers the control plane's node carries the pods."""
    nodes: list[dict[str, object]] = [{"role": "control-plane"}]
    for node in shape.node_names():
        mount = {"hostPath": str(state / "nodes" / node / "driver"), "containerPath": "/run/nvidia/driver"}
        nodes.append({"role": "worker", "extraMounts": [mount]})
    gates = (pair.partition("=") for pair in filter(None, shape.feature_gates.split(",")))
    return {
        "apiVersion": "kind.x-k8s.io/v1alpha4",
        "kind": "Cluster",
        "nodes": nodes,
        "featureGates": {name: value.lower() == "true" for name, _, value in gates},
        "runtimeConfig": {"api/all": "true"},
    }


def down(state: Path) -> None:
    _kind("delete", "cluster", "--name", state.name)
    if state.exists():
        shutil.rmtree(state)
    say(f"cluster {state.name!r} is removed")


def status(state: Path) -> str:
    kubectl = tools.build("kubernetes") / "kubectl"
    return run([kubectl, f"--kubeconfig={state / 'kubeconfig'}", "get", "nodes", "--output=wide"])


def log(state: Path, where: str, what: str) -> str:
    if where == "control-plane" and what in COMPONENTS:
        folder = f"/var/log/containers/kube-{what}-*" if what != "etcd" else "/var/log/containers/etcd-*"
        return run(["docker", "exec", _container(state, where), "sh", "-c", f"cat {folder}"])
    check_known(what, SERVICES[:2])
    return run(["docker", "exec", _container(state, where), "journalctl", "--no-pager", "--unit", what])


def command_in(state: Path, node: str, command: Sequence[str]) -> list[str]:
    terminal = ["--tty"] if sys.stdin.isatty() and os.isatty(1) else []
    return ["docker", "exec", "--interactive", *terminal, _container(state, node), *command]


def load(state: Path, archive: Path) -> None:
    _kind("load", "image-archive", archive, "--name", state.name)


def disturb(state: Path, fault: Fault) -> None:
    container = _container(state, fault.where)
    if fault.where == "control-plane" and fault.what in COMPONENTS:
        check_known(fault.verb, ("kill", "start"))
        name = "etcd.yaml" if fault.what == "etcd" else f"kube-{fault.what}.yaml"
        source, target = (MANIFESTS, PARKED) if fault.verb == "kill" else (PARKED, MANIFESTS)
        run(["docker", "exec", container, "sh", "-c", f"mkdir -p {PARKED} && mv {source}/{name} {target}/"])
    elif fault.what:
        check_known(fault.what, SERVICES[:2])
        run(["docker", "exec", container, "sh", "-c", _SERVICE_COMMANDS[fault.verb].format(fault.what)])
    else:
        run(_NODE_COMMANDS[fault.verb].format(container).split(" ", maxsplit=5))


_SERVICE_COMMANDS = {
    # systemd would start it again at once
    "kill": "systemctl kill --signal=KILL {0} && systemctl stop {0}",
    "start": "systemctl start {}",
    "pause": "systemctl kill --signal=STOP --kill-whom=main {}",
    "resume": "systemctl kill --signal=CONT --kill-whom=main {}",
}
_NODE_COMMANDS = {
    "cut": "docker exec {} sh -c iptables -I INPUT -i eth0 -j DROP && iptables -I OUTPUT -o eth0 -j DROP",
    "heal": "docker exec {} sh -c iptables -D INPUT -i eth0 -j DROP && iptables -D OUTPUT -o eth0 -j DROP",
    "freeze": "docker pause {}",
    "thaw": "docker unpause {}",
    "poweroff": "docker kill {}",
    "poweron": "docker start {}",
}
