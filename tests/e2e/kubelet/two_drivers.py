"""Claims of two drivers in one pod: GPUs and the channel of a ComputeDomain, served by one process."""

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import yaml

from tests.support.bench import RESOURCE_API, Bench, open_bench
from tests.support.cluster import ROOT, Cluster, Object, path, wait_until
from tests.support.hardware import Simulator
from tests.support.manifests import claim, config, mig_request, pod, request
from tests.support.plugin import FABRIC_NODE, NodePlugin

API = "resource.nvidia.com/v1beta1"
CHANNELS = "compute-domain.nvidia.com"
SYSTEM = "partita-system"
CHANCES_S = 400.0
"""The kubelet asks a pod's drivers in any order, and none after one that fails, which takes it most of a minute."""
CREATE = "nvmlDeviceCreateGpuInstanceWithPlacement"
DESTROY = "nvmlGpuInstanceDestroy"


@contextmanager
def fabric_bench(cluster: Cluster) -> Iterator[Bench]:
    """The node with an NVLink fabric, both drivers; the test plays the controller."""
    for file in sorted((ROOT / "deployments/helm/partita/crds").glob("computedomain*.yaml")):
        cluster.apply(yaml.safe_load(file.read_text()))
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM}})
    environment = {"DRIVERS": f"gpu.nvidia.com,{CHANNELS}", "POD_NAMESPACE": SYSTEM}
    plugin = NodePlugin(cluster, FABRIC_NODE, environment)
    bench = open_bench(cluster, plugin, Simulator(cluster, FABRIC_NODE))
    try:
        plugin.start()
        for driver in environment["DRIVERS"].split(","):
            plugin.wait_logged("registered", driver=driver)
        bench.wait_published()
        try:
            yield bench
        finally:
            bench.sweep()
    finally:
        plugin.kill()


def clique_of(cluster: Cluster) -> str:
    """As the driver has published it on its channel."""

    def published() -> str | None:
        selector = f"spec.nodeName={FABRIC_NODE},spec.driver={CHANNELS}"
        for piece in cluster.list(path(RESOURCE_API, "resourceslices"), fieldSelector=selector):
            for device in piece["spec"].get("devices") or ():
                if device["name"] == "channel-0":
                    return str(device["attributes"]["cliqueID"]["string"])
        return None

    return wait_until("the channel is published", published)


def release_channel(bench: Bench, domain: str, clique: str) -> None:
    """What the controller writes once the domain is formed."""
    member = {"nodeName": FABRIC_NODE, "ipAddress": "", "cliqueID": clique, "index": 0, "released": True, "message": ""}
    body: Object = {
        "apiVersion": API,
        "kind": "ComputeDomainClique",
        "metadata": {"name": f"{domain}.{clique}", "namespace": SYSTEM},
        "domainName": "train",
        "domainNamespace": bench.namespace,
        "draining": False,
        "daemons": [member],
    }
    bench.cluster.apply(body)


def block_one_and_fail_the_other(bench: Bench) -> None:
    """When the pod starts, and over a restart of the kubelet; when it ends one of them fails."""
    cluster, domain, clique = bench.cluster, str(uuid4()), clique_of(bench.cluster)
    channel = config(CHANNELS, {"apiVersion": API, "kind": "ComputeDomainChannelConfig", "domainID": domain})
    channel_request = request("channel", "compute-domain-default-channel.nvidia.com")
    profile = sorted(
        device["attributes"]["profile"]["string"]
        for device in bench.devices().values()
        if device["attributes"]["type"]["string"] == "mig"
    )[0]
    bench.simulator.fail(CREATE, "unknown")
    cluster.apply(
        [
            claim("slice", bench.namespace, mig_request(profile)),
            claim("channel", bench.namespace, channel_request, configs=(channel,)),
            pod("user", bench.namespace, claims=("slice", "channel"), node=FABRIC_NODE),
        ]
    )
    bench.wait_bound()
    bench.wait_event("user", "Failed to prepare dynamic resources", patience_s=120.0)
    bench.restart_kubelet(lambda: release_channel(bench, domain, clique))
    bench.plugin.wait_logged("claim_prepared", CHANCES_S, driver=CHANNELS)
    assert bench.simulator.instances() == []
    bench.simulator.work()
    bench.wait_running()
    assert len(bench.cdi_files()) == 2
    assert len(bench.simulator.instances()) == 1
    assert cluster.in_pod("user", "ls", "/dev/nvidia-caps-imex-channels", namespace=bench.namespace).split() == [
        "channel0"
    ]
    bench.simulator.fail(DESTROY, "unknown")
    bench.ask_to_delete("user")
    bench.plugin.wait_logged("claim_not_unprepared", driver="gpu.nvidia.com")
    assert cluster.find(bench.pods("user")) is not None
    bench.simulator.work()
    bench.wait_gone("user")
    assert bench.holdings() == {}
