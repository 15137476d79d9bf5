"""The objects that are made for a ComputeDomain, as plain dicts. Pure; names are functions of the domain."""

import base64
import hashlib
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

from api.clique import DAEMON_HTTP_PORT, DAEMON_PROBE_TIMEOUT_S, IMEX_PORT, clique_object_name
from api.names import (
    CHANNEL_CLASS,
    COMPUTE_DOMAIN_CLIQUE_LABEL,
    COMPUTE_DOMAIN_DRIVER,
    COMPUTE_DOMAIN_LABEL,
    COMPUTE_DOMAIN_TARGET_LABEL,
    DAEMON_CLASS,
    DRA_API_VERSION,
    RESOURCE_API_VERSION,
)
from api.ref import Ref
from controller.computedomain.state import Clique, Domain, Member, Settings

Json = dict[str, Any]

CLAIM_FINALIZER: Final = "resource.kubernetes.io/delete-protection"
"""resource/v1 Finalizer. The scheduler sets it with a write of its own unless the claim has it already."""

DAEMON_GRACE_S: Final = 10
"""How long `nvidia-imex` may take to stop."""

_NAME_LENGTH: Final = 48  # 63 of a DNS label, less two hashes and their dashes


@lru_cache(maxsize=4096)  # every plan asks for the names of all members again
def short_hash(text: str, length: int) -> str:
    """`length` characters of [a-z2-7]."""
    return base64.b32encode(hashlib.sha256(text.encode()).digest()).decode().lower()[:length]


def daemon_name(domain: Domain, node: str) -> str:
    """`<domain>-<5>-<8>`: the name of a node's daemon pod and of its claim, the same at every attempt."""
    base = domain.ref.name.replace(".", "-")[:_NAME_LENGTH].rstrip("-")
    return f"{base}-{short_hash(domain.ref.uid, 5)}-{short_hash(node, 8)}"


def format_time(seconds: float) -> str:
    """RFC 3339 in UTC with whole seconds, as metav1.Time."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def build_template(domain: Domain) -> Json:
    """The ResourceClaimTemplate that the user's pods refer to."""
    parameters: Json = {
        "apiVersion": RESOURCE_API_VERSION,
        "kind": "ComputeDomainChannelConfig",
        "domainID": domain.ref.uid,
        "allocationMode": domain.allocation_mode,
    }
    if domain.wait_for_all:
        parameters["releasePolicy"] = "AllNodes"
    return {
        "apiVersion": DRA_API_VERSION,
        "kind": "ResourceClaimTemplate",
        "metadata": {
            "name": domain.template_name,
            "namespace": domain.ref.namespace,
            "labels": {COMPUTE_DOMAIN_LABEL: domain.ref.uid, COMPUTE_DOMAIN_TARGET_LABEL: "Workload"},
            "ownerReferences": [_owner(RESOURCE_API_VERSION, domain.ref)],
        },
        "spec": {"spec": _build_devices("channel", CHANNEL_CLASS, parameters)},
    }


def build_clique(domain: Domain, clique_id: str, members: list[Member], settings: Settings) -> Json:
    """The ComputeDomainClique of one IMEX domain.

    What nvidia-imex must have alike on all nodes is decided here, for as long as the domain is formed: a setting that
    is changed meanwhile would part a daemon that is replaced from its peers.
    """
    return {
        "apiVersion": RESOURCE_API_VERSION,
        "kind": "ComputeDomainClique",
        "metadata": {
            "name": clique_object_name(domain.ref.uid, clique_id),
            "namespace": settings.namespace,
            "labels": {COMPUTE_DOMAIN_LABEL: domain.ref.uid, COMPUTE_DOMAIN_CLIQUE_LABEL: clique_id},
        },
        "releasePolicy": "AllNodes" if domain.wait_for_all else "Connected",
        "tls": settings.tls,
        "nodeList": settings.node_list,
        **build_membership(domain, members, settings.max_nodes_per_imex_domain),
    }


def uses_tls(clique: Clique, settings: Settings) -> bool:
    """Cliques of an older controller do not say."""
    stored = clique.membership.tls
    return settings.tls if stored is None else stored


def build_membership(
    domain: Domain,
    members: list[Member],
    max_nodes: int,
    authorities: tuple[str, ...] = (),
    abandoned: tuple[str, ...] = (),
) -> Json:
    """The fields of a ComputeDomainClique that change in its life; who writes them adds the certificates they lack."""
    deleted = {} if domain.deleted_at is None else {"deletedAt": format_time(domain.deleted_at)}
    return {
        "domainName": domain.ref.name,
        "domainNamespace": domain.ref.namespace,
        "maxNodes": max_nodes,
        "draining": domain.deleted_at is not None,
        **deleted,
        "spec": {"replicas": len(members)},
        "daemons": [_build_entry(member) for member in members],
        "authorities": list(authorities),
        "abandonedClaims": list(abandoned),
    }


def _build_entry(member: Member) -> Json:
    entry: Json = {
        "nodeName": member.node,
        "ipAddress": member.address,
        "cliqueID": member.clique_id,
        "index": member.index,
        "status": "Ready" if member.ready else "NotReady",
        "released": member.released,
        "message": member.message,
        "absent": member.absent,
        "holdsNode": member.holds_node,
        "publicKey": member.public_key,
        "certificate": member.certificate,
    }
    return entry


def build_daemon_claim(domain: Domain, member: Member, clique: Clique, settings: Settings) -> Json:
    """The claim of one daemon: it holds the node's `daemon` device, and so keeps a second domain away."""
    parameters = {
        "apiVersion": RESOURCE_API_VERSION,
        "kind": "ComputeDomainDaemonConfig",
        "domainID": domain.ref.uid,
    }
    metadata = _daemon_metadata(domain, member, clique, settings)
    return {
        "apiVersion": DRA_API_VERSION,
        "kind": "ResourceClaim",
        "metadata": {**metadata, "finalizers": [CLAIM_FINALIZER]},
        "spec": _build_devices("daemon", DAEMON_CLASS, parameters),
    }


def build_daemon_pod(domain: Domain, member: Member, clique: Clique, settings: Settings) -> Json:
    """The pod of one daemon. It is bound by the scheduler, which must allocate its claim, to the one node that fits."""
    name = daemon_name(domain, member.node)
    node_name = {"key": "metadata.name", "operator": "In", "values": [member.node]}
    term = {"nodeSelectorTerms": [{"matchFields": [node_name]}]}
    spec: Json = {
        "serviceAccountName": settings.service_account,
        # The node plugin brings it all that it may know. Without volumes the kubelet has nothing to wait for.
        "automountServiceAccountToken": False,
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": DAEMON_GRACE_S,
        "enableServiceLinks": False,
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term}},
        "tolerations": [{"operator": "Exists"}],
        "resourceClaims": [{"name": "daemon", "resourceClaimName": name}],
        "containers": [_build_container(domain, member, clique, settings)],
    }
    if settings.priority_class:
        spec["priorityClassName"] = settings.priority_class
    if settings.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": secret} for secret in settings.image_pull_secrets]
    metadata = _daemon_metadata(domain, member, clique, settings)
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def _build_container(domain: Domain, member: Member, clique: Clique, settings: Settings) -> Json:
    probe = {"periodSeconds": 1, "timeoutSeconds": DAEMON_PROBE_TIMEOUT_S, "failureThreshold": 1}
    container: Json = {
        "name": "imex-daemon",
        "image": settings.image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": ["partita-imex-daemon"],
        "env": _build_environment(domain, member, clique.membership.node_list or settings.node_list),
        "ports": [
            {"name": "imex", "containerPort": IMEX_PORT},
            {"name": "http", "containerPort": DAEMON_HTTP_PORT},
        ],
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": "http"}, **probe},
        "livenessProbe": {
            "httpGet": {"path": "/livez", "port": "http"},
            "initialDelaySeconds": 30,
            "periodSeconds": 30,
            "timeoutSeconds": 10,
        },
        # No requests: with its high priority it would preempt the job that it is for, on a node that this one fills.
        "resources": {"claims": [{"name": "daemon"}]},
        "securityContext": {
            # Root without capabilities: /etc/hosts, the capability node and the domain's directory are root's.
            "runAsUser": 0,
            "runAsGroup": 0,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    return container


def _build_environment(domain: Domain, member: Member, node_list: str) -> list[Json]:
    values = {
        "COMPUTE_DOMAIN_UUID": domain.ref.uid,
        "CLIQUE_ID": member.clique_id,
        "NODE_NAME": member.node,
        "IMEX_NODE_LIST": node_list,
        "NVIDIA_VISIBLE_DEVICES": "void",  # else NVIDIA's container runtime adds every GPU
    }
    fields = {
        "POD_IP": "status.podIP",
        "POD_NAMESPACE": "metadata.namespace",
    }
    return [
        *({"name": name, "value": value} for name, value in values.items()),
        *({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in fields.items()),
    ]


def _build_devices(request: str, device_class: str, parameters: Json) -> Json:
    opaque = {"driver": COMPUTE_DOMAIN_DRIVER, "parameters": parameters}
    return {
        "devices": {
            "requests": [{"name": request, "exactly": {"deviceClassName": device_class}}],
            "config": [{"requests": [request], "opaque": opaque}],
        }
    }


def _daemon_metadata(domain: Domain, member: Member, clique: Clique, settings: Settings) -> Json:
    return {
        "name": daemon_name(domain, member.node),
        "namespace": settings.namespace,
        "labels": {COMPUTE_DOMAIN_LABEL: domain.ref.uid, COMPUTE_DOMAIN_CLIQUE_LABEL: member.clique_id},
        "annotations": {NODE_ANNOTATION: member.node},
        "ownerReferences": [{**_owner(RESOURCE_API_VERSION, clique.ref), "controller": True}],
    }


NODE_ANNOTATION: Final = "resource.nvidia.com/node"
"""On daemon pods and claims: the node that they are for, from before they are scheduled."""


def _owner(api_version: str, ref: Ref) -> Json:
    return {"apiVersion": api_version, "kind": ref.kind, "name": ref.name, "uid": ref.uid}
