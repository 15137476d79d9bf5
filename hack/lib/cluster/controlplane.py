"""etcd, kube-apiserver, kube-scheduler and kube-controller-manager, in the machine's own namespaces."""

import json
from pathlib import Path

from cluster import groups, processes, tools
from cluster.pki import create_authority, issue, write_kubeconfig
from cluster.provider import COMPONENTS
from cluster.report import ClusterError
from cluster.shape import DEFAULT_NODE_TIMEOUT_S, SERVICE_ADDRESS, SERVICE_NETWORK, Cluster


def write_identities(cluster: Cluster) -> None:
    """Certificates and kubeconfigs of everything that has one, nodes included. Kept for as long as the cluster is."""
    pki = cluster.state / "pki"
    authority = create_authority(pki)
    names = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local")
    addresses = (cluster.host_address, "127.0.0.1", SERVICE_ADDRESS)
    issue(authority, "apiserver", "kube-apiserver", names=(*addresses, *names))
    issue(authority, "kubelet-client", "kube-apiserver-kubelet-client", group="system:masters")
    for component in ("kube-scheduler", "kube-controller-manager", "kube-proxy"):
        issue(authority, component, f"system:{component}")
        write_kubeconfig(pki / f"{component}.kubeconfig", cluster.server, pki, component)
    for node in cluster.shape.node_names():
        own = (node, cluster.node_address(node))
        issue(authority, node, f"system:node:{node}", group="system:nodes", names=own)
        write_kubeconfig(pki / f"{node}.kubeconfig", cluster.server, pki, node)
    if cluster.shape.network_policies:  # its own manifests have a role for it, which we would have to follow
        issue(authority, "kube-router", "kube-router", group="system:masters")
        write_kubeconfig(pki / "kube-router.kubeconfig", cluster.server, pki, "kube-router")
    issue(authority, "admin", "kubernetes-admin", group="system:masters")
    write_kubeconfig(cluster.kubeconfig, cluster.server, pki, "admin", cluster.state.name)


def record(cluster: Cluster, component: str) -> Path:
    return cluster.state / "run" / component


def start(cluster: Cluster, component: str) -> None:
    """Start one component unless it runs."""
    if processes.running(record(cluster, component)) is not None:
        return
    procs_files = groups.create(f"{cluster.identity}/control-plane")
    log = cluster.logs / f"{component}.log"
    processes.start(record(cluster, component), procs_files, _command(cluster, component), log)


def kill(cluster: Cluster, component: str) -> None:
    processes.kill(record(cluster, component))


def _command(cluster: Cluster, component: str) -> list[str]:
    if component == "etcd":
        return _etcd(cluster)
    programs = tools.build("kubernetes", cluster.shape.kubernetes)
    program, flags = {
        "apiserver": ("kube-apiserver", _apiserver),
        "scheduler": ("kube-scheduler", _scheduler),
        "controller-manager": ("kube-controller-manager", _controller_manager),
    }[component]
    gates = [f"--feature-gates={cluster.shape.feature_gates}"] if cluster.shape.feature_gates else []
    return [str(programs / program), *flags(cluster), *gates]


def _etcd(cluster: Cluster) -> list[str]:
    client, peer = (f"http://{cluster.loopback_address}:{port}" for port in (2379, 2380))
    return [
        str(tools.build("etcd") / "etcd"),
        f"--data-dir={cluster.state / 'etcd'}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--unsafe-no-fsync",  # a trial cluster need not survive the machine's power cut
    ]


def _apiserver(cluster: Cluster) -> list[str]:
    pki = cluster.state / "pki"
    flags = [
        f"--etcd-servers=http://{cluster.loopback_address}:2379",
        "--secure-port=6443",
        f"--bind-address={cluster.host_address}",
        f"--advertise-address={cluster.host_address}",
        f"--tls-cert-file={pki / 'apiserver.crt'}",
        f"--tls-private-key-file={pki / 'apiserver.key'}",
        f"--client-ca-file={pki / 'ca.crt'}",
        f"--service-account-key-file={pki / 'service-account.pub'}",
        f"--service-account-signing-key-file={pki / 'service-account.key'}",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-cluster-ip-range={SERVICE_NETWORK}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        "--runtime-config=api/all=true",
        f"--kubelet-client-certificate={pki / 'kubelet-client.crt'}",
        f"--kubelet-client-key={pki / 'kubelet-client.key'}",
        f"--kubelet-certificate-authority={pki / 'ca.crt'}",
        "--kubelet-preferred-address-types=InternalIP",
        # Webhooks are called by pod address: nothing translates Service addresses in the machine's own namespace.
        "--enable-aggregator-routing=true",
    ]
    if cluster.shape.node_timeout_s < DEFAULT_NODE_TIMEOUT_S:
        flags += ["--default-not-ready-toleration-seconds=5", "--default-unreachable-toleration-seconds=5"]
    if cluster.shape.audit:
        flags += _audit(cluster)
    return flags


def _audit(cluster: Cluster) -> list[str]:
    """One JSON line for each finished request: who, what, when, with which code."""
    policy = {
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [{"level": "Metadata"}],
    }
    path = cluster.state / "audit-policy.json"
    path.write_text(json.dumps(policy))
    return [
        f"--audit-policy-file={path}",
        f"--audit-log-path={cluster.logs / 'audit.log'}",
        "--audit-log-maxsize=2048",
    ]


def _scheduler(cluster: Cluster) -> list[str]:
    config = {
        "apiVersion": "kubescheduler.config.k8s.io/v1",
        "kind": "KubeSchedulerConfiguration",
        "leaderElection": {"leaderElect": False},
        "clientConnection": {
            "kubeconfig": str(cluster.state / "pki" / "kube-scheduler.kubeconfig"),
            "qps": 1000,
            "burst": 2000,
        },
    }
    path = cluster.state / "scheduler.json"
    path.write_text(json.dumps(config))
    return [f"--config={path}", f"--bind-address={cluster.loopback_address}", "--secure-port=10259"]


def _controller_manager(cluster: Cluster) -> list[str]:
    pki = cluster.state / "pki"
    return [
        f"--kubeconfig={pki / 'kube-controller-manager.kubeconfig'}",
        "--leader-elect=false",
        f"--bind-address={cluster.loopback_address}",
        "--secure-port=10257",
        "--use-service-account-credentials=true",
        f"--service-account-private-key-file={pki / 'service-account.key'}",
        f"--root-ca-file={pki / 'ca.crt'}",
        "--kube-api-qps=1000",
        "--kube-api-burst=2000",
        "--node-monitor-period=1s",
        f"--node-monitor-grace-period={cluster.shape.node_timeout_s}s",
    ]


def check_alive(cluster: Cluster) -> None:
    """Raise with the end of its log when a component that was started has died."""
    for component in COMPONENTS:
        if record(cluster, component).exists() and processes.running(record(cluster, component)) is None:
            log = cluster.logs / f"{component}.log"
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-5:]) if log.exists() else ""
            raise ClusterError(f"{component} has died; the end of {log}:\n{tail}")
