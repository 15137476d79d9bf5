"""`partita`: what people type to see why something waits. It reads with the rights of its user, and writes nothing."""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from api.client import ApiError, Client, NotFound, path
from api.connection import Connection, ConnectionUnknown
from api.errors import PartitaError
from api.names import COMPUTE_DOMAIN_LABEL, DRA_API_VERSION, RESOURCE_API_VERSION
from api.nesting import allow_deep_objects
from controller.computedomain.objects import NODE_ANNOTATION
from controller.computedomain.parse import parse_claim
from controller.computedomain.state import ChannelClaim
from controller.explain import PodFacts, explain_pod, list_domains

Json = dict[str, Any]


def main() -> None:
    """Exit status 0, or 1 with a message."""
    allow_deep_objects()
    options = build_parser().parse_args()
    try:
        for line in asyncio.run(run(options)):
            print(line)
    except PartitaError as error:
        print(f"partita: {error}", file=sys.stderr)
        sys.exit(1)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("partita", description="See what GPU claims and ComputeDomains wait for.")
    _add_connection(parser, None)
    verbs = parser.add_subparsers(dest="verb", required=True)
    explain = verbs.add_parser("explain", help="why does it wait?")
    explain.add_argument("kind", choices=["pod"])
    explain.add_argument("name")
    explain.add_argument("-n", "--namespace", help="default: the context's")
    get = verbs.add_parser("get", help="list")
    get.add_argument("kind", choices=["domains"])
    get.add_argument("-n", "--namespace", help="default: all namespaces")
    for verb in (explain, get):
        _add_connection(verb, argparse.SUPPRESS)  # what is not said after the verb may have been said before it
    return parser


def _add_connection(parser: argparse.ArgumentParser, default: str | None) -> None:
    parser.add_argument(
        "--kubeconfig", default=default, help="kubeconfig file; default: $KUBECONFIG, then ~/.kube/config"
    )
    parser.add_argument("--context", default=default, help="context of the kubeconfig; default: its current one")


async def run(options: argparse.Namespace) -> Sequence[str]:
    """The lines to print. Raises PartitaError."""
    connection = await Connection.load(find_kubeconfig(options), options.context)
    async with Client(connection) as client:
        if options.verb == "get":
            where = path(RESOURCE_API_VERSION, "computedomains", namespace=options.namespace)
            return list_domains(await client.list(where))
        namespace = options.namespace or connection.namespace or "default"
        return explain_pod(await gather_facts(client, namespace, options.name))


def find_kubeconfig(options: argparse.Namespace) -> str | None:
    """Where kubectl looks; None: we are in a pod. Raises ConnectionUnknown."""
    usual = Path.home() / ".kube" / "config"
    found = options.kubeconfig or os.environ.get("KUBECONFIG") or (str(usual) if usual.exists() else None)
    if found is None and (options.context or "KUBERNETES_SERVICE_HOST" not in os.environ):
        raise ConnectionUnknown(f"no kubeconfig is named by --kubeconfig or $KUBECONFIG, nor is there {usual}")
    return found


async def gather_facts(client: Client, namespace: str, name: str) -> PodFacts:
    """Everything that belongs to one pod. Raises NotFound when there is no such pod."""
    pod = await client.get(path("v1", "pods", namespace=namespace, name=name))
    claims = {entry: await _find_claim(client, namespace, claim) for entry, claim in _claim_names(pod).items()}
    channels = [parsed for raw in claims.values() if raw and isinstance(parsed := parse_claim(raw), ChannelClaim)]
    uids = {channel.domain_uid for channel in channels}
    own = path(RESOURCE_API_VERSION, "computedomains", namespace=namespace)  # a domain is for its own namespace only
    every = await client.list(own) if uids else []
    domains = {domain["metadata"]["uid"]: domain for domain in every if domain["metadata"]["uid"] in uids}
    selector = f"{COMPUTE_DOMAIN_LABEL} in ({','.join(sorted(uids))})"
    cliques = await _list(client, path(RESOURCE_API_VERSION, "computedomaincliques"), selector) if uids else []
    pods = await _list(client, path("v1", "pods"), selector) if uids else []
    node = pod["spec"].get("nodeName")
    daemons = {
        daemon["metadata"]["labels"][COMPUTE_DOMAIN_LABEL]: daemon
        for daemon in pods
        if (daemon["metadata"].get("annotations") or {}).get(NODE_ANNOTATION) == node
    }
    about = {pod["metadata"]["uid"], *uids, *(raw["metadata"]["uid"] for raw in claims.values() if raw)}
    return PodFacts(pod, claims, domains, cliques, daemons, await _list_warnings(client, namespace, about))


def _claim_names(pod: Json) -> dict[str, str | None]:
    """The claims' names, by the names that the pod has for them; None while there is none."""
    made = {entry["name"]: entry.get("resourceClaimName") for entry in pod["status"].get("resourceClaimStatuses") or []}
    entries = pod["spec"].get("resourceClaims") or []
    return {entry["name"]: entry.get("resourceClaimName") or made.get(entry["name"]) for entry in entries}


async def _find_claim(client: Client, namespace: str, name: str | None) -> Json | None:
    if name is None:
        return None
    try:
        return await client.get(path(DRA_API_VERSION, "resourceclaims", namespace=namespace, name=name))
    except NotFound:
        return None


async def _list(client: Client, where: str, selector: str) -> list[Json]:
    """Who may not read the driver's namespace still gets an answer, only a shorter one."""
    try:
        return await client.list(where, labelSelector=selector)
    except ApiError as error:
        print(f"partita: not everything can be told: {error}", file=sys.stderr)
        return []


async def _list_warnings(client: Client, namespace: str, about: set[str]) -> list[Json]:
    events = await client.list(path("v1", "events", namespace=namespace), fieldSelector="type=Warning")
    mine = [event for event in events if (event.get("involvedObject") or {}).get("uid") in about]
    return sorted(mine, key=lambda event: event.get("lastTimestamp") or event.get("eventTime") or "")


if __name__ == "__main__":
    main()
