"""The controller's settings: environment variables, each with a flag twin (`LEASE_NAME`, `--lease-name`). No IO."""

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from api.compute_domain import MAX_NODES_PER_IMEX_DOMAIN
from api.errors import InvalidObject


@dataclass(frozen=True, slots=True)
class ControllerSettings:
    """Everything that an administrator may decide. Durations in seconds."""

    namespace: str
    identity: str
    image: str
    image_pull_policy: str = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()
    kubeconfig: str | None = None
    http_endpoint: str = ":8080"
    lease_name: str = "partita-controller"
    lease_duration_s: float = 15.0
    lease_renew_deadline_s: float = 10.0
    lease_retry_period_s: float = 1.0
    max_nodes_per_imex_domain: int = MAX_NODES_PER_IMEX_DOMAIN
    imex_tls: bool = True
    imex_node_list: str = "names"
    daemon_service_account: str = "partita-imex-daemon"
    daemon_priority_class: str = ""
    compute_domains: bool = True
    gpu_clique_label: bool = False
    node_partitioning: bool = False
    partitioning_max_unavailable: int = 1
    partitioning_tolerate_kube_system: bool = True
    partitioning_drain_s: float = 300.0
    partitioning_apply_s: float = 300.0
    partitioning_dcm_s: float = 2100.0
    log_level: str = "INFO"


_OPTIONS: Final = {
    # environment variable: default, help
    "POD_NAMESPACE": ("partita-system", "the driver's namespace"),
    "POD_NAME": ("partita-controller", "who holds the lease"),
    "POD_UID": ("", "makes the identity unique when a name is used again"),
    "IMAGE": ("docker.io/library/partita:dev", "image of the IMEX daemons' pods"),
    "IMAGE_PULL_POLICY": ("IfNotPresent", "of those pods"),
    "IMAGE_PULL_SECRETS": ("", "names, comma-separated, of those pods"),
    "KUBECONFIG": ("", "kubeconfig file; else the pod's service account"),
    "HTTP_ENDPOINT": (":8080", "where /metrics, /healthz and /readyz are"),
    "LEASE_NAME": ("partita-controller", "Lease of the leader election"),
    "LEASE_DURATION": ("15s", "after which a silent leader is replaced"),
    "LEASE_RENEW_DEADLINE": ("10s", "after which a leader that cannot renew stops"),
    "LEASE_RETRY_PERIOD": ("1s", "between two looks at the lease"),
    "MAX_NODES_PER_IMEX_DOMAIN": (str(MAX_NODES_PER_IMEX_DOMAIN), "nodes of one ComputeDomain in one NVLink clique"),
    "IMEX_TLS": ("true", "encrypt between the IMEX daemons: true or false"),
    "IMEX_NODE_LIST": ("names", "what the daemons list: names, or addresses for NVIDIA drivers before 570.158.01"),
    "DAEMON_SERVICE_ACCOUNT": ("partita-imex-daemon", "of the IMEX daemons' pods"),
    "DAEMON_PRIORITY_CLASS": ("", "of the IMEX daemons' pods"),
    "COMPUTE_DOMAINS": ("true", "form and tear down ComputeDomains: true or false"),
    "GPU_CLIQUE_LABEL": ("false", "label nodes with their NVLink clique, nvidia.com/gpu.clique: true or false"),
    "NODE_PARTITIONING": ("false", "partition nodes of AMD GPUs as their KaiwoNodes ask: true or false"),
    "PARTITIONING_MAX_UNAVAILABLE": ("1", "nodes that are partitioned at a time"),
    "PARTITIONING_TOLERATE_KUBE_SYSTEM": ("true", "add tolerations to workloads in kube-system: true or false"),
    "PARTITIONING_DRAIN_TIMEOUT": ("5m", "for the pods of a node to leave"),
    "PARTITIONING_APPLY_TIMEOUT": ("5m", "for the node plugin to change the GPUs"),
    "PARTITIONING_DCM_TIMEOUT": ("35m", "for the Device Config Manager to do so; it tries for 30 minutes"),
    "LOG_VERBOSITY": ("4", "0: warnings; 1 to 5: what is done; 6 and more: everything"),
}

_DURATION_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_duration(text: str) -> float:
    """`15s`, `1m30s`, `500ms` (Go's notation) in seconds. Raises InvalidObject."""
    if not re.fullmatch(r"(\d+(\.\d+)?(ms|s|m|h))+", text):
        raise InvalidObject(f"duration {text!r}: right would be like 15s or 1m30s")
    return sum(float(n) * _DURATION_UNITS[unit] for n, unit in re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h)", text))


def parse_settings(arguments: Sequence[str], environment: Mapping[str, str]) -> ControllerSettings:
    """Flags beat the environment. Raises InvalidObject; exits with usage on unknown flags, as commands do."""
    parser = argparse.ArgumentParser(prog="partita-controller", allow_abbrev=False)
    for name, (default, text) in _OPTIONS.items():
        flag = "--" + name.lower().replace("_", "-")
        parser.add_argument(flag, dest=name, default=environment.get(name) or default, help=text, metavar="VALUE")
    values: dict[str, Any] = vars(parser.parse_args(arguments))
    lease = [parse_duration(values[f"LEASE_{part}"]) for part in ("DURATION", "RENEW_DEADLINE", "RETRY_PERIOD")]
    if sorted(lease, reverse=True) != lease or len(set(lease)) != len(lease):
        raise InvalidObject("LEASE_DURATION must be longer than LEASE_RENEW_DEADLINE, and that than LEASE_RETRY_PERIOD")
    return ControllerSettings(
        namespace=values["POD_NAMESPACE"],
        identity="_".join(part for part in (values["POD_NAME"], values["POD_UID"]) if part),
        image=values["IMAGE"],
        image_pull_policy=values["IMAGE_PULL_POLICY"],
        image_pull_secrets=tuple(name for name in values["IMAGE_PULL_SECRETS"].split(",") if name),
        kubeconfig=values["KUBECONFIG"] or None,
        http_endpoint=values["HTTP_ENDPOINT"],
        lease_name=values["LEASE_NAME"],
        lease_duration_s=lease[0],
        lease_renew_deadline_s=lease[1],
        lease_retry_period_s=lease[2],
        max_nodes_per_imex_domain=_parse_positive("MAX_NODES_PER_IMEX_DOMAIN", values),
        imex_tls=_parse_bool("IMEX_TLS", values),
        imex_node_list=_parse_choice("IMEX_NODE_LIST", values, ("names", "addresses")),
        daemon_service_account=values["DAEMON_SERVICE_ACCOUNT"],
        daemon_priority_class=values["DAEMON_PRIORITY_CLASS"],
        compute_domains=_parse_bool("COMPUTE_DOMAINS", values),
        gpu_clique_label=_parse_bool("GPU_CLIQUE_LABEL", values),
        node_partitioning=_parse_bool("NODE_PARTITIONING", values),
        partitioning_max_unavailable=_parse_positive("PARTITIONING_MAX_UNAVAILABLE", values),
        partitioning_tolerate_kube_system=_parse_bool("PARTITIONING_TOLERATE_KUBE_SYSTEM", values),
        partitioning_drain_s=parse_duration(values["PARTITIONING_DRAIN_TIMEOUT"]),
        partitioning_apply_s=parse_duration(values["PARTITIONING_APPLY_TIMEOUT"]),
        partitioning_dcm_s=parse_duration(values["PARTITIONING_DCM_TIMEOUT"]),
        log_level=_log_level(values["LOG_VERBOSITY"]),
    )


def _parse_bool(name: str, values: Mapping[str, str]) -> bool:
    return _parse_choice(name, values, ("true", "false")) == "true"


def _parse_choice(name: str, values: Mapping[str, str], right: tuple[str, str]) -> str:
    if values[name] not in right:
        raise InvalidObject(f"{name} {values[name]!r}: right would be {' or '.join(right)}")
    return values[name]


def _parse_positive(name: str, values: Mapping[str, str]) -> int:
    if not re.fullmatch(r"[1-9]\d*", values[name]):
        raise InvalidObject(f"{name} {values[name]!r}: right would be a whole number above 0")
    return int(values[name])


def _log_level(verbosity: str) -> str:
    if not re.fullmatch(r"\d+", verbosity):
        raise InvalidObject(f"LOG_VERBOSITY {verbosity!r}: right would be a number from 0 to 6")
    return "WARNING" if int(verbosity) < 1 else "INFO" if int(verbosity) < 6 else "DEBUG"
