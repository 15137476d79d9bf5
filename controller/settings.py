"""The controller's settings: environment variables, each with a flag twin (`LEASE_NAME`, `--lease-name`). No IO."""

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from api.compute_domain import MAX_NODES_PER_IMEX_DOMAIN
from api.errors import InvalidObject
from api.options import Endpoint, parse_bool, parse_choice, parse_duration, parse_endpoint, parse_positive, refuse
from controller.computedomain.state import Settings as DomainSettings
from controller.leader import LeaseSettings
from controller.nodepartitioning.state import Limits
from controller.nodepartitioning.state import Settings as PartitioningSettings

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ControllerSettings:
    """Everything that an administrator may decide."""

    lease: LeaseSettings
    domains: DomainSettings
    partitioning: PartitioningSettings
    compute_domains: bool
    gpu_clique_label: bool
    node_partitioning: bool
    kubeconfig: str | None
    http_endpoint: Endpoint
    log_level: str


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
    # The first two are client-go's defaults.
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


def parse_settings(arguments: Sequence[str], environment: Mapping[str, str]) -> ControllerSettings:
    """Flags beat the environment. Raises InvalidObject; exits with usage on unknown flags, as commands do."""
    parser = argparse.ArgumentParser(prog="partita-controller", allow_abbrev=False)
    for name, (default, text) in _OPTIONS.items():
        flag = "--" + name.lower().replace("_", "-")
        parser.add_argument(flag, dest=name, default=environment.get(name) or default, help=text, metavar="VALUE")
    values: dict[str, str] = vars(parser.parse_args(arguments))
    return ControllerSettings(
        lease=_parse_lease(values),
        domains=_parse_domains(values),
        partitioning=_parse_partitioning(values),
        compute_domains=_parse(parse_bool, "COMPUTE_DOMAINS", values),
        gpu_clique_label=_parse(parse_bool, "GPU_CLIQUE_LABEL", values),
        node_partitioning=_parse(parse_bool, "NODE_PARTITIONING", values),
        kubeconfig=values["KUBECONFIG"] or None,
        http_endpoint=_parse(parse_endpoint, "HTTP_ENDPOINT", values),
        log_level=_parse(_parse_verbosity, "LOG_VERBOSITY", values),
    )


def _parse(parse: Callable[[str, str], T], name: str, values: Mapping[str, str]) -> T:
    return parse(name, values[name])


def _parse_lease(values: Mapping[str, str]) -> LeaseSettings:
    lease = LeaseSettings(
        namespace=values["POD_NAMESPACE"],
        name=values["LEASE_NAME"],
        identity="_".join(part for part in (values["POD_NAME"], values["POD_UID"]) if part),
        duration_s=_parse(parse_duration, "LEASE_DURATION", values),
        renew_deadline_s=_parse(parse_duration, "LEASE_RENEW_DEADLINE", values),
        retry_period_s=_parse(parse_duration, "LEASE_RETRY_PERIOD", values),
    )
    if not lease.duration_s > lease.renew_deadline_s > lease.retry_period_s:
        raise InvalidObject("LEASE_DURATION must be longer than LEASE_RENEW_DEADLINE, and that than LEASE_RETRY_PERIOD")
    return lease


def _parse_domains(values: Mapping[str, str]) -> DomainSettings:
    return DomainSettings(
        namespace=values["POD_NAMESPACE"],
        image=values["IMAGE"],
        max_nodes_per_imex_domain=_parse(parse_positive, "MAX_NODES_PER_IMEX_DOMAIN", values),
        tls=_parse(parse_bool, "IMEX_TLS", values),
        node_list=parse_choice("IMEX_NODE_LIST", values["IMEX_NODE_LIST"], ("names", "addresses")),
        service_account=values["DAEMON_SERVICE_ACCOUNT"],
        priority_class=values["DAEMON_PRIORITY_CLASS"],
        image_pull_policy=values["IMAGE_PULL_POLICY"],
        image_pull_secrets=tuple(name for name in values["IMAGE_PULL_SECRETS"].split(",") if name),
    )


def _parse_partitioning(values: Mapping[str, str]) -> PartitioningSettings:
    return PartitioningSettings(
        limits=Limits(
            drain_s=_parse(parse_duration, "PARTITIONING_DRAIN_TIMEOUT", values),
            plugin_apply_s=_parse(parse_duration, "PARTITIONING_APPLY_TIMEOUT", values),
            dcm_apply_s=_parse(parse_duration, "PARTITIONING_DCM_TIMEOUT", values),
        ),
        max_unavailable=_parse(parse_positive, "PARTITIONING_MAX_UNAVAILABLE", values),
        tolerate_kube_system=_parse(parse_bool, "PARTITIONING_TOLERATE_KUBE_SYSTEM", values),
    )


def _parse_verbosity(name: str, text: str) -> str:
    if not re.fullmatch("[0-9]+", text):
        raise refuse(name, text, "a number from 0 to 6")
    return "WARNING" if int(text) < 1 else "INFO" if int(text) < 6 else "DEBUG"
