"""Nodes: each has its own network, mounts, processes, control groups, /dev, containerd, kubelet and kube-proxy."""

import json
import shutil
import subprocess
import time
import uuid
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from paths import CACHE, ROOT, SCRIPTS

from cluster import groups, hardware, network, policies, processes, tools
from cluster.report import ClusterError, say
from cluster.shape import DEFAULT_NODE_TIMEOUT_S, Cluster

SYSTEM_FILES = (  # of the machine's /etc, what programs on a node need
    *("alternatives", "group", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "nsswitch.conf"),
    *("passwd", "protocols", "services", "ssl"),
)
PERSISTENT = (
    *("etc", "driver", "var/lib/cni", "var/lib/containerd", "var/lib/kubelet"),
    *("var/log/containers", "var/log/pods"),
)
NVIDIA_DRIVER = "/run/nvidia/driver"
NVIDIA_MOUNT = f"{NVIDIA_DRIVER}/usr/bin/nvidia-simulator-mount"
LEASE_SHARE = 2 / 3  # of the node timeout; kubelet's own defaults are 40 s of 50


def group(cluster: Cluster, node: str) -> str:
    return f"{cluster.identity}/{node}"


def launcher(cluster: Cluster, node: str) -> Path:
    return cluster.state / "run" / node


def is_on(cluster: Cluster, node: str) -> bool:
    return processes.running(launcher(cluster, node)) is not None


def create(cluster: Cluster, node: str) -> None:
    """The node's disk: configuration, certificates, simulated driver. It outlives power cuts."""
    folder = cluster.node_dir(node)
    for part in PERSISTENT:
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "var" / "run").symlink_to("/run")
    for name in SYSTEM_FILES:
        source = Path("/etc", name)
        if source.is_dir():
            shutil.copytree(source, folder / "etc" / name, symlinks=True)
        elif source.exists():
            shutil.copy(source, folder / "etc" / name)
    (folder / "etc" / "machine-id").write_text(f"{uuid.uuid4().hex}\n")
    (folder / "etc" / "hosts").write_text(f"127.0.0.1 localhost\n{cluster.node_address(node)} {node}\n")
    hardware.install(cluster.shape, node, folder / "driver")
    _write_configuration(cluster, node)


def _write_configuration(cluster: Cluster, node: str) -> None:
    etc, pki = cluster.node_dir(node) / "etc", cluster.state / "pki"
    files = {
        "kubernetes/kubelet.json": json.dumps(_kubelet(cluster), indent=1),
        "kubernetes/kube-proxy.json": json.dumps(_kube_proxy(cluster), indent=1),
        "kubernetes/kubelet.kubeconfig": (pki / f"{node}.kubeconfig").read_text(),
        "kubernetes/kube-proxy.kubeconfig": (pki / "kube-proxy.kubeconfig").read_text(),
        "kubernetes/kubelet.crt": (pki / f"{node}.crt").read_text(),
        "kubernetes/kubelet.key": (pki / f"{node}.key").read_text(),
        "kubernetes/ca.crt": (pki / "ca.crt").read_text(),
        "kubernetes/environment": _environment(cluster, node),
        "containerd/config.toml": (SCRIPTS / "containerd.toml")
        .read_text()
        .replace("CNI_PLUGINS", str(tools.build("cni"))),
        "containerd/spec.json": json.dumps(_container_spec(cluster.node_dir(node) / "driver")),
        "cni/net.d/10-pods.conflist": json.dumps(_cni(cluster, node), indent=1),
        "cdi/.keep": "",
    }
    if cluster.shape.network_policies:
        files["kubernetes/kube-router.kubeconfig"] = (pki / "kube-router.kubeconfig").read_text()
    for name, text in files.items():
        (etc / name).parent.mkdir(parents=True, exist_ok=True)
        (etc / name).write_text(text)


def _container_spec(driver: Path) -> dict[str, Any]:
    """What the specification of each container begins with: a driver shows in the /proc of all of them."""
    spec = _default_container_spec()
    if not (driver / "proc/driver").is_dir():
        return spec
    command = [NVIDIA_MOUNT, NVIDIA_DRIVER, "-"]
    return {**spec, "hooks": {"createContainer": [{"path": command[0], "args": command}]}}


@cache
def _default_container_spec() -> dict[str, Any]:
    command = [str(tools.build("containerd") / "ctr"), "oci", "spec"]
    spec: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    del spec["process"]["rlimits"]  # containerd has them for its own client only, not for pods
    return spec


def _environment(cluster: Cluster, node: str) -> str:
    """Read by the scripts that run in the node."""
    programs = [tools.build(name) for name in ("containerd", "runc")] + [
        tools.build("kubernetes", cluster.shape.kubernetes)
    ]
    routing = policies.environment(policies.prepare()) if cluster.shape.network_policies else {}
    return "".join(f"{name}={value}\n" for name, value in routing.items()) + (
        f"NODE={node}\nADDRESS={cluster.node_address(node)}\n"
        f"PATH={':'.join(map(str, programs))}:{processes.ENVIRONMENT['PATH']}\n"
    )


def _kubelet(cluster: Cluster) -> dict[str, object]:
    config: dict[str, object] = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "cgroupDriver": "cgroupfs",
        "cgroupsPerQOS": True,
        "enforceNodeAllocatable": [],
        "failCgroupV1": False,
        "failSwapOn": False,
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "resolvConf": "",
        # Nothing is removed for lack of space on the machine's disk: there is no registry to have an image again from.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {
            "memory.available": "1Mi",
            "nodefs.available": "0%",
            "imagefs.available": "0%",
            "nodefs.inodesFree": "0%",
        },
        "tlsCertFile": "/etc/kubernetes/kubelet.crt",
        "tlsPrivateKeyFile": "/etc/kubernetes/kubelet.key",
        "authentication": {"x509": {"clientCAFile": "/etc/kubernetes/ca.crt"}, "webhook": {"enabled": True}},
        "authorization": {"mode": "Webhook"},
    }
    if cluster.shape.node_timeout_s < DEFAULT_NODE_TIMEOUT_S:
        config["nodeStatusUpdateFrequency"] = "2s"
        config["nodeLeaseDurationSeconds"] = max(3, int(cluster.shape.node_timeout_s * LEASE_SHARE))
    if cluster.shape.feature_gates:
        pairs = (pair.partition("=") for pair in cluster.shape.feature_gates.split(","))
        config["featureGates"] = {name: value.lower() == "true" for name, _, value in pairs}
    return config


def _kube_proxy(cluster: Cluster) -> dict[str, object]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clusterCIDR": cluster.pod_network,
        "clientConnection": {"kubeconfig": "/etc/kubernetes/kube-proxy.kubeconfig"},
        "healthzBindAddress": "",
        "metricsBindAddress": "127.0.0.1:10249",
        # Those sysctls belong to the machine, not to a network namespace: leave them alone.
        "conntrack": {
            "maxPerCore": 0,
            "min": None,
            "tcpCloseWaitTimeout": "0s",
            "tcpEstablishedTimeout": "0s",
        },
    }


def _cni(cluster: Cluster, node: str) -> dict[str, object]:
    # Routed, not bridged: without br_netfilter, what a bridge carries between two pods passes kube-proxy's rules by.
    cable = {
        "type": "ptp",
        "ipMasq": False,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": cluster.node_pods(node)}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    portmap = {"type": "portmap", "backend": "nftables", "capabilities": {"portMappings": True}}
    return {"cniVersion": "1.0.0", "name": "pods", "plugins": [cable, portmap]}


def power_on(cluster: Cluster, node: str, archives: Sequence[Path] = ()) -> None:
    """Boot a node. `archives`: images that it imports before its kubelet starts, unless it has them."""
    folder = cluster.node_dir(node)
    (folder / "boot_id").write_text(f"{uuid.uuid4()}\n")
    entry = network.namespace(cluster.identity, node)
    # The node's group becomes the root of its cgroup namespace. Only its own processes may be in there, so the
    # launcher, which waits outside for the node's process 1, has another.
    joining = ["bash", str(SCRIPTS / "join.sh"), *map(str, groups.create(group(cluster, node))), "--"]
    command = ["nsenter", f"--net=/run/netns/{entry}", "unshare", "--mount", "--pid", "--uts", "--ipc", "--fork"]
    command += ["--kill-child", "--propagation=private", *joining, "unshare", "--cgroup", "bash"]
    command += [str(SCRIPTS / "init.sh"), str(folder), node, str(ROOT), str(CACHE), *map(str, archives)]
    launchers = groups.create(f"{cluster.identity}/launchers")
    processes.start(launcher(cluster, node), launchers, command, cluster.logs / f"{node}.log")


def power_off(cluster: Cluster, node: str) -> None:
    """As if its cable had been pulled: everything dies at once, only its disk stays."""
    groups.kill(group(cluster, node))
    # A kubelet that finds the groups of dead containers waits 3 s for each.
    groups.remove(group(cluster, node))
    hardware.reboot(cluster.shape, node, cluster.node_dir(node) / "driver")


def command_in(cluster: Cluster, node: str, command: Sequence[str]) -> list[str]:
    """The command line that runs a command in a node: its namespaces, its control groups."""
    pid = processes.running(launcher(cluster, node))
    init = processes.child(pid) if pid is not None else None
    if init is None:
        raise ClusterError(f"node {node} is off")
    procs_files = groups.create(group(cluster, node) + ("/init" if groups.unified() else ""))
    joining = ["bash", str(SCRIPTS / "join.sh"), *map(str, procs_files), "--"]
    return [*joining, "nsenter", f"--target={init}", "-m", "-p", "-n", "-u", "-i", "-C", "--", *command]


def run_in(cluster: Cluster, node: str, *command: str) -> str:
    done = subprocess.run(command_in(cluster, node, command), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ClusterError(f"`{' '.join(command)}` failed in node {node}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def signal_service(cluster: Cluster, node: str, service: str, signal: str) -> None:
    """`signal`: KILL, STOP or CONT."""
    run_in(cluster, node, "bash", str(SCRIPTS / "service.sh"), "signal", service, signal)


def start_service(cluster: Cluster, node: str, service: str) -> None:
    run_in(cluster, node, "bash", str(SCRIPTS / "service.sh"), "start", service)


def load(cluster: Cluster, node: str, archive: Path) -> None:
    run_in(cluster, node, "bash", str(SCRIPTS / "service.sh"), "import", str(archive))


def check_alive(cluster: Cluster) -> None:
    for node in cluster.shape.node_names():
        if not is_on(cluster, node):
            log = cluster.logs / f"{node}.log"
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
            raise ClusterError(f"node {node} stopped while it booted; the end of {log}:\n{tail}")


def wait_booted(cluster: Cluster, node: str, patience_s: float = 60.0) -> None:
    """Until the node's services have been started."""
    marker = cluster.node_dir(node) / "booted"
    deadline = time.monotonic() + patience_s
    while not (marker.exists() and marker.read_text() == (cluster.node_dir(node) / "boot_id").read_text()):
        check_alive(cluster)
        if time.monotonic() > deadline:
            raise ClusterError(
                f"node {node} did not boot within {patience_s:.0f} s; see {cluster.logs / f'{node}.log'}"
            )
        time.sleep(0.05)
    say(f"node {node} has booted")
