"""The command `hack/cluster`."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from cluster import controlplane, groups, local, network, nodes, tools
from cluster.paths import state_dir
from cluster.report import ClusterError
from cluster.shape import Cluster, Shape


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hack/cluster", description=__doc__)
    parser.add_argument("--name", default=os.environ.get("PARTITA_CLUSTER", "partita"), help="which cluster (default: partita)")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    up = verbs.add_parser("up", help="make a cluster, or start what of it is not running")
    up.add_argument("--nodes", type=int, help="default: one for each profile, or 1; 0: control plane only")
    up.add_argument("--profile", default="", help="simulated hardware, P[,P...], given to the nodes in turn")
    up.add_argument("--kubernetes", default=tools.pinned_version("kubernetes"), help="release X.Y.Z (default: %(default)s)")
    up.add_argument("--feature-gates", default="", help="Gate=true,... for every component")
    up.add_argument("--audit", action="store_true", help="log every API request into logs/audit.log")
    up.add_argument("--node-timeout", type=int, default=40, metavar="S", help="silence after which a node counts as lost")
    verbs.add_parser("down", help="remove the cluster and all that it left")
    verbs.add_parser("status", help="what runs")
    _with_rest(verbs.add_parser("kubectl", help="kubectl as the cluster's administrator"))
    logs = verbs.add_parser("logs", help="the log of a service of a node, or of a component of the control plane")
    logs.add_argument("where", help="NODE or control-plane")
    logs.add_argument("what", nargs="?", default="kubelet")
    execute = verbs.add_parser("exec", help="run a command in a node: exec NODE -- CMD")
    execute.add_argument("node")
    _with_rest(execute)
    verbs.add_parser("load", help="import an OCI archive on all nodes").add_argument("archive", type=Path)
    for verb, text in (
        ("kill", "SIGKILL a service of a node or a component of the control plane"),
        ("start", "start it again"),
        ("pause", "SIGSTOP a service of a node"),
        ("resume", "SIGCONT it"),
    ):
        fault = verbs.add_parser(verb, help=text)
        fault.add_argument("where", help="NODE or control-plane")
        fault.add_argument("what", help=f"{', '.join(nodes.SERVICES)}; {', '.join(controlplane.COMPONENTS)}")
    for verb, text in (
        ("cut", "unplug a node's network"),
        ("heal", "plug it in again"),
        ("freeze", "stop every process of a node"),
        ("thaw", "let them run again"),
        ("poweroff", "everything in the node dies at once, its disk stays"),
        ("poweron", "boot it again"),
    ):
        verbs.add_parser(verb, help=text).add_argument("node")
    return parser


def _with_rest(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)


def _shape(options: argparse.Namespace) -> Shape:
    profiles = tuple(filter(None, options.profile.split(",")))
    count = options.nodes if options.nodes is not None else max(1, len(profiles))
    return Shape(
        nodes=count,
        profiles=profiles if count else (),
        kubernetes=options.kubernetes.removeprefix("v"),
        feature_gates=options.feature_gates,
        audit=options.audit,
        node_timeout_s=options.node_timeout,
    )


def _run(options: argparse.Namespace) -> None:
    state = state_dir(options.name)
    if options.verb == "up":
        cluster = local.up(state, _shape(options))
        print(f"export KUBECONFIG={cluster.kubeconfig}")
    elif options.verb == "down":
        local.down(state)
    else:
        _run_on(local.need(state), options)


def _run_on(cluster: Cluster, options: argparse.Namespace) -> None:
    verb = options.verb
    if verb == "status":
        print(local.status(cluster))
    elif verb == "kubectl":
        local.run_kubectl(cluster.kubeconfig, cluster.shape.kubernetes, options.rest)
    elif verb == "logs":
        sys.stdout.write(_log(cluster, options.where, options.what).read_text(errors="replace"))
    elif verb == "exec":
        command = options.rest[1:] if options.rest[:1] == ["--"] else options.rest
        sys.stdout.flush()
        sys.exit(subprocess.run(nodes.command_in(cluster, cluster.check_node(options.node), command), check=False).returncode)
    elif verb == "load":
        local.load(cluster, options.archive)
    elif verb in ("kill", "start", "pause", "resume"):
        _disturb(cluster, verb, options.where, options.what)
    elif verb in ("cut", "heal"):
        network.set_cable(cluster, cluster.check_node(options.node), "down" if verb == "cut" else "up")
    elif verb in ("freeze", "thaw"):
        groups.freeze(nodes.group(cluster, cluster.check_node(options.node)), verb == "freeze")
    elif verb == "poweroff":
        local.power_off(cluster, options.node)
    elif verb == "poweron":
        local.power_on(cluster, options.node)


def _disturb(cluster: Cluster, verb: str, where: str, what: str) -> None:
    if where == "control-plane":
        _check(what, controlplane.COMPONENTS)
        if verb == "kill":
            controlplane.kill(cluster, what)
        elif verb == "start":
            controlplane.start(cluster, what)
        else:
            raise ClusterError(f"{verb} is for services of nodes")
        return
    cluster.check_node(where)
    _check(what, nodes.SERVICES)
    if verb == "start":
        nodes.start_service(cluster, where, what)
    else:
        nodes.signal_service(cluster, where, what, {"kill": "KILL", "pause": "STOP", "resume": "CONT"}[verb])


def _log(cluster: Cluster, where: str, what: str) -> Path:
    if where == "control-plane":
        _check(what, (*controlplane.COMPONENTS, "audit"))
        return cluster.logs / f"{what}.log"
    _check(what, nodes.SERVICES)
    return cluster.node_dir(cluster.check_node(where)) / "var" / "log" / f"{what}.log"


def _check(what: str, known: tuple[str, ...]) -> None:
    if what not in known:
        raise ClusterError(f"there is no {what!r} there; known: {', '.join(known)}")


def main() -> None:
    options = _parser().parse_args()
    try:
        _run(options)
    except ClusterError as error:
        print(f"hack/cluster: {error}", file=sys.stderr)
        sys.exit(1)


main()
