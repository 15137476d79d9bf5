"""`hack/bench prepare --driver gpu.amd.com`: claims for AMD GPUs that are in the wanted mode already."""

from simulator.amd import node as hardware

from api.client import Client
from bench.kubelet import Kubelet
from bench.node import Node, ServiceAccount
from bench.objects import delete_claims, delete_slices, make_claims
from bench.objects import wait_for_devices as wait
from bench.prepare import (
    AT_ONCE,
    NAMESPACE,
    NODE,
    Floor,
    Options,
    measure_one_at_a_time,
    measure_together,
    set_up,
    show_one,
    show_together,
)
from bench.report import show

BENCH = "prepare"
DRIVER = "gpu.amd.com"
STATIC = {"AMD_PARTITIONING": "static"}


async def run(options: Options) -> None:
    """Eight whole MI300X, then the same in 64 partitions."""
    async with await Client.connect(str(options.kubeconfig)) as client:
        account = await set_up(options, client)
        await delete_slices(client, NODE)
        for mode in ("full-gpu", "partition"):
            await _measure(options, client, account, mode)
            await delete_slices(client, NODE)


async def _measure(options: Options, client: Client, account: ServiceAccount | None, case: str) -> None:
    node = Node(NODE, options.base / f"partita-bench-{case}", "mi300x", options.kubeconfig, account, DRIVER)
    try:
        if case == "partition":
            hardware.set_modes(node.driver_root, "CPX", 4)
        node.start(**STATIC)
        await node.wait_until_registered()
        kubelet = await Kubelet.register(node.registration_socket)
        names = [device["name"] for device in await wait(client, NODE, DRIVER)]
        floor = Floor(options, account, kubelet, node.plugins)
        devices = [[names[index % AT_ONCE * (len(names) // AT_ONCE)]] for index in range(options.claims)]
        claims = await make_claims(client, NAMESPACE, f"amd-{case}", NODE, devices, DRIVER)
        show_one(f"amd-{case}", await measure_one_at_a_time(kubelet, node, floor, claims))
        show_together(f"amd-{case}-{AT_ONCE}-at-once", await measure_together(kubelet, node, claims))
        show(BENCH, f"amd-{case}", "rss", node.rss_mib(), "MiB", threads=node.threads())
        floor.close()
        await kubelet.close()
        await delete_claims(client, NAMESPACE)
    finally:
        node.remove()
