"""The command `hack/cluster`."""

import argparse
import importlib
import os
import subprocess
import sys
from pathlib import Path

from paths import state_dir

from cluster import tools
from cluster.processes import GO
from cluster.provider import (
    COMPONENTS,
    NODE_FAULTS,
    SERVICE_FAULTS,
    SERVICES,
    Fault,
    Provider,
    docker_answers,
    read_provider,
)
from cluster.report import ClusterError
from cluster.shape import DEFAULT_NODE_TIMEOUT_S, MAX_NODES, Shape

PROVIDERS = ("kind", "current", "local")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hack/cluster", description="A real Kubernetes cluster for trials and tests.")
    name = os.environ.get("PARTITA_CLUSTER", "partita")
    parser.add_argument("--name", default=name, help="which cluster (default: $PARTITA_CLUSTER or partita)")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_up(verbs.add_parser("up", help="make a cluster, or start what of it is not running"))
    prepare = verbs.add_parser("prepare", help="build what `up` on this machine's own kernel needs")
    prepare.add_argument("--kubernetes", default="", metavar="X.Y[.Z]", help="release (default: the pinned one)")
    _add_network_policies(prepare)
    verbs.add_parser("down", help="remove the cluster and all that it left")
    verbs.add_parser("status", help="what runs")
    for verb in ("kubectl", "helm"):
        verbs.add_parser(verb, help=f"{verb} as the cluster's administrator")
    logs = verbs.add_parser("logs", help="the log of a service of a node, or of a component of the control plane")
    logs.add_argument("where", help="NODE or control-plane")
    logs.add_argument("what", nargs="?", help=f"{', '.join(SERVICES)}; {', '.join(COMPONENTS)}, audit")
    verbs.add_parser("exec", help="run a command in a node: exec NODE -- CMD").add_argument("node")
    verbs.add_parser("load", help="import an OCI archive on all nodes").add_argument("archive", type=Path)
    for verb, text in SERVICE_FAULTS.items():
        fault = verbs.add_parser(verb, help=text)
        fault.add_argument("where", help="NODE or control-plane")
        fault.add_argument("what", help=f"{', '.join(SERVICES)}; {', '.join(COMPONENTS)}")
    for verb, text in NODE_FAULTS.items():
        verbs.add_parser(verb, help=text).add_argument("where", metavar="NODE")
    return parser


def _add_up(up: argparse.ArgumentParser) -> None:
    up.add_argument("--nodes", type=int, help="default: one for each profile, or 1; 0: control plane only")
    up.add_argument("--profile", default="", help="simulated hardware, P[,P...], given to the nodes in turn")
    release = "release (default: the pinned one; of kind's node image, or of the one that $PARTITA_NODE_IMAGE names)"
    up.add_argument("--kubernetes", default="", metavar="X.Y[.Z]", help=release)
    up.add_argument("--feature-gates", default="", help="Gate=true,... for every component")
    up.add_argument("--audit", action="store_true", help="log every API request as a JSON line into logs/audit.log")
    up.add_argument(
        "--node-timeout",
        type=int,
        default=DEFAULT_NODE_TIMEOUT_S,
        metavar="S",
        help="silence after which a node counts as lost",
    )
    _add_network_policies(up)
    provider = os.environ.get("PARTITA_PROVIDER")
    text = "default: $PARTITA_PROVIDER, else kind where a Docker daemon answers, else local"
    up.add_argument("--provider", choices=PROVIDERS, default=provider, help=text)


def _add_network_policies(parser: argparse.ArgumentParser) -> None:
    text = "enforce NetworkPolicies (kube-router; minutes to build, once)"
    parser.add_argument("--network-policies", action="store_true", help=text)


def _shape(options: argparse.Namespace) -> Shape:
    profiles = tuple(filter(None, options.profile.split(",")))
    count = options.nodes if options.nodes is not None else max(1, len(profiles))
    if not 0 <= count <= MAX_NODES:
        raise ClusterError(f"--nodes must be from 0 to {MAX_NODES}, not {count}")
    return Shape(
        nodes=count,
        profiles=profiles if count else (),
        kubernetes=options.kubernetes.removeprefix("v"),
        feature_gates=options.feature_gates,
        audit=options.audit,
        node_timeout_s=options.node_timeout,
        network_policies=options.network_policies,
    )


def _provider(name: str) -> Provider:
    # Not all at the start: tests run this program some thousand times, mostly for kubectl, which needs none of them.
    provider: Provider = importlib.import_module(f"cluster.{name}")
    return provider


def _run(options: argparse.Namespace, rest: list[str]) -> int:
    state = state_dir(options.name)
    existing = read_provider(state)
    if options.verb == "up":
        name = options.provider or existing or ("kind" if docker_answers() else "local")
        if existing not in (None, name):
            raise ClusterError(f"cluster {options.name!r} exists with provider {existing}; `down` removes it")
        _provider(name).up(state, _shape(options))
        print(f"export KUBECONFIG={state / 'kubeconfig'}")
        return 0
    if options.verb == "prepare":
        from cluster import local

        local.prepare(Shape(1, (), options.kubernetes, "", False, 0, options.network_policies))
        tools.build("helm")
        return 0
    if options.verb == "down":
        _provider(existing or "local").down(state)
        return 0
    if existing is None:
        raise ClusterError(f"there is no cluster {options.name!r}; `hack/cluster up` makes one")
    if options.verb in ("kubectl", "helm"):
        program = tools.build("kubernetes" if options.verb == "kubectl" else "helm") / options.verb
        environment = {**GO, **os.environ, "KUBECONFIG": str(state / "kubeconfig")}
        os.execve(program, [options.verb, *rest], environment)
    return _run_on(_provider(existing), state, options, rest)


def _run_on(provider: Provider, state: Path, options: argparse.Namespace, rest: list[str]) -> int:
    match options.verb:
        case "status":
            print(provider.status(state))
        case "logs":
            default = "apiserver" if options.where == "control-plane" else "kubelet"
            sys.stdout.write(provider.log(state, options.where, options.what or default))
        case "exec":
            if not rest:
                raise ClusterError("which command? exec NODE -- CMD")
            return subprocess.run(provider.command_in(state, options.node, rest), check=False).returncode
        case "load":
            provider.load(state, options.archive)
        case _:
            provider.disturb(state, Fault(options.verb, options.where, getattr(options, "what", "")))
    return 0


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """Our own words, and the command line that belongs to kubectl, helm or the program that runs in a node."""
    for position, word in enumerate(words):
        if word in ("kubectl", "helm"):
            return words[: position + 1], words[position + 1 :]
        if word == "--":
            return words[:position], words[position + 1 :]
    return words, []


def main() -> int:
    words, rest = _split(sys.argv[1:])
    options = _parser().parse_args(words)
    try:
        return _run(options, rest)
    except ClusterError as error:
        print(f"hack/cluster: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("hack/cluster: interrupted; `down` removes what there is", file=sys.stderr)
        return 130  # as a shell says it: 128 + SIGINT


if __name__ == "__main__":
    sys.exit(main())
