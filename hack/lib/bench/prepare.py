"""`hack/bench prepare`: what preparing and unpreparing a claim costs, against the least that it could cost."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from api.client import Client
from bench.floor import DurableFile, RawApi
from bench.kubelet import Kubelet
from bench.node import Node, ServiceAccount
from bench.objects import (
    Claim,
    bind_admin,
    delete_claims,
    delete_slices,
    make_claims,
    make_namespace,
    make_node,
    make_token,
    wait_for_devices,
)
from bench.report import median, percentile, show

BENCH = "prepare"
NAMESPACE = "bench-prepare"
NODE = "bench-node"
AT_ONCE = 8
ALL_DRIVERS = "gpu.nvidia.com,compute-domain.nvidia.com"
"""Of a node with NVIDIA hardware, in one process as the chart runs it."""
_FLOOR_SAMPLES = 25


@dataclass(frozen=True, slots=True)
class Options:
    kubeconfig: Path
    base: Path
    claims: int
    """Per case."""
    soak: int
    """Claims after the first thousand, to see whether memory stays flat."""
    as_pod: bool
    """Run the plugin with a service account as a pod does, which takes root and `unshare`."""
    plugin: type[Node] = Node
    """Partita's, or another driver's."""


@dataclass(slots=True)
class Times:
    prepare_ms: list[float]
    unprepare_ms: list[float]
    floor_ms: list[float]
    elapsed_s: float = 0.0
    cpu_s: float = 0.0


class Floor:
    """Measured between the claims of a case, so that both see the same machine."""

    def __init__(self, options: Options, account: ServiceAccount | None, kubelet: Kubelet, directory: Path) -> None:
        self._api = RawApi(options.kubeconfig, account.token if account else None)
        self._file = DurableFile(directory)
        self._kubelet = kubelet

    async def measure(self, claim: Claim) -> float:
        """Milliseconds."""
        started_s = time.perf_counter()
        await self._kubelet.empty_call()
        self._api.get(f"/apis/resource.k8s.io/v1/namespaces/{claim.namespace}/resourceclaims/{claim.name}")
        self._file.append()
        self._file.append()
        return (time.perf_counter() - started_s) * 1e3

    def close(self) -> None:
        self._api.close()
        self._file.__exit__()


async def set_up(options: Options, client: Client) -> ServiceAccount | None:
    """A namespace without claims, a node, and who the plugin is; None: whoever we are."""
    await make_namespace(client, NAMESPACE)
    await make_node(client, NODE)
    await delete_claims(client, NAMESPACE)
    if not options.as_pod:
        return None
    await bind_admin(client, NAMESPACE, "plugin")
    return ServiceAccount(await make_token(client, NAMESPACE, "plugin"), options.kubeconfig)


async def run(options: Options) -> None:
    async with await Client.connect(str(options.kubeconfig)) as client:
        account = await set_up(options, client)
        if options.plugin is Node:  # NVIDIA's publishes nothing for 16 GPUs that can be partitioned
            await _measure_start(options, client, account)
        await _measure_claims(options, client, account)
        await delete_claims(client, NAMESPACE)


async def _measure_start(options: Options, client: Client, account: ServiceAccount | None) -> None:
    """A node with 16 GPUs, all of whose MIG devices are published."""
    node = Node(NODE, options.base / "partita-bench-16", "h100x16", options.kubeconfig, account)
    try:
        await delete_slices(client, NODE)
        started_s = time.perf_counter()
        node.start(DRIVERS=ALL_DRIVERS)
        await node.wait_until_registered()
        up_s = time.perf_counter() - started_s
        kubelet = await Kubelet.register(node.registration_socket)
        await (await Kubelet.register(node.registration_socket)).close()
        devices = await wait_for_devices(client, NODE)
        published_s = time.perf_counter() - started_s
        show(BENCH, "start-16-gpus", "up", up_s, "s")
        show(BENCH, "start-16-gpus", "published", published_s, "s", devices=len(devices))
        show(BENCH, "start-16-gpus", "rss", node.rss_mib(), "MiB")
        await kubelet.close()
    finally:
        node.remove()
        await delete_slices(client, NODE)


async def _measure_claims(options: Options, client: Client, account: ServiceAccount | None) -> None:
    node = options.plugin(NODE, options.base / "partita-bench-8", "h100", options.kubeconfig, account)
    try:
        node.start(DRIVERS=ALL_DRIVERS)
        await node.wait_until_registered()
        kubelet = await Kubelet.register(node.registration_socket)
        devices = await wait_for_devices(client, NODE)
        full = [device["name"] for device in devices if device["attributes"]["type"]["string"] == "gpu"]
        small = [device["name"] for device in devices if "-mig-1g10gb-19-" in device["name"]]
        spread = [name for gpu in full for name in small if name.startswith(f"{gpu}-") and name.endswith("-0")]
        cases: list[tuple[str, Callable[[int], list[str]]]] = [
            ("full-gpu", lambda index: [full[index % AT_ONCE]]),
            ("mig", lambda index: [spread[index % AT_ONCE]]),
            ("8-devices", lambda index: full[:8]),
        ]
        floor = Floor(options, account, kubelet, node.plugins)
        for case, devices_of in cases:
            claims = await _make(client, case, options.claims, devices_of)
            times = await measure_one_at_a_time(kubelet, node, floor, claims)
            show_one(case, times)
            if case != "8-devices":
                show_together(f"{case}-{AT_ONCE}-at-once", await measure_together(kubelet, node, claims))
            await delete_claims(client, NAMESPACE)
        floor.close()
        await _measure_burst(client, kubelet, small)
        await _measure_memory(options, client, kubelet, node, cases[0][1])
        await kubelet.close()
    finally:
        node.remove()


async def _make(client: Client, case: str, count: int, devices_of: Callable[[int], list[str]]) -> list[Claim]:
    return await make_claims(client, NAMESPACE, case, NODE, [devices_of(index) for index in range(count)])


async def measure_one_at_a_time(kubelet: Kubelet, node: Node, floor: Floor, claims: Sequence[Claim]) -> Times:
    times = Times([], [], [])
    for claim in claims[:10]:  # connections, caches
        await kubelet.prepare(claim)
        await kubelet.unprepare(claim)
    pause = max(1, len(claims) // _FLOOR_SAMPLES)
    for start in range(0, len(claims), pause):
        for claim in claims[start : start + 4]:
            times.floor_ms.append(await floor.measure(claim))
        cpu_s, started_s = node.cpu_s(), time.perf_counter()
        for claim in claims[start : start + pause]:
            before_s = time.perf_counter()
            await kubelet.prepare(claim)
            between_s = time.perf_counter()
            await kubelet.unprepare(claim)
            times.prepare_ms.append((between_s - before_s) * 1e3)
            times.unprepare_ms.append((time.perf_counter() - between_s) * 1e3)
        times.elapsed_s += time.perf_counter() - started_s
        times.cpu_s += node.cpu_s() - cpu_s
    return times


async def measure_together(kubelet: Kubelet, node: Node, claims: Sequence[Claim]) -> Times:
    times = Times([], [], [])

    async def cycle(lane: Sequence[Claim]) -> None:
        for claim in lane:
            before_s = time.perf_counter()
            await kubelet.prepare(claim)
            between_s = time.perf_counter()
            await kubelet.unprepare(claim)
            times.prepare_ms.append((between_s - before_s) * 1e3)
            times.unprepare_ms.append((time.perf_counter() - between_s) * 1e3)

    cpu_s, started_s = node.cpu_s(), time.perf_counter()
    await asyncio.gather(*(cycle(claims[lane::AT_ONCE]) for lane in range(AT_ONCE)))
    times.elapsed_s = time.perf_counter() - started_s
    times.cpu_s = node.cpu_s() - cpu_s
    return times


async def _measure_burst(client: Client, kubelet: Kubelet, small: Sequence[str]) -> None:
    """Fifty pods at once on one node, each with a MIG slice of its own, after one by itself."""
    claims = await _make(client, "burst", 50, lambda index: [small[index]])

    async def prepare(claim: Claim) -> float:
        before_s = time.perf_counter()
        await kubelet.prepare(claim)
        return (time.perf_counter() - before_s) * 1e3

    alone_ms = [await prepare(claim) for claim in claims]
    for claim in claims:
        await kubelet.unprepare(claim)
    burst_ms = await asyncio.gather(*(prepare(claim) for claim in claims))
    for claim in claims:
        await kubelet.unprepare(claim)
    show(BENCH, "burst-of-50", "p50", median(burst_ms), "ms")
    show(BENCH, "burst-of-50", "max", max(burst_ms), "ms", added_ms=round(max(burst_ms) - median(alone_ms), 1))
    await delete_claims(client, NAMESPACE)


def show_one(case: str, times: Times) -> None:
    floor_ms = median(times.floor_ms)
    show(BENCH, case, "floor_p50", floor_ms, "ms")
    p50 = median(times.prepare_ms)
    show(BENCH, case, "p50", p50, "ms", ratio_to_floor=round(p50 / floor_ms, 2))
    show(BENCH, case, "p99", percentile(times.prepare_ms, 99), "ms")
    show(BENCH, case, "unprepare_p50", median(times.unprepare_ms), "ms")
    show(BENCH, case, "unprepare_p99", percentile(times.unprepare_ms, 99), "ms")
    _show_rates(case, times)


def show_together(case: str, times: Times) -> None:
    show(BENCH, case, "p50", median(times.prepare_ms), "ms")
    show(BENCH, case, "p99", percentile(times.prepare_ms, 99), "ms")
    _show_rates(case, times)


def _show_rates(case: str, times: Times) -> None:
    count = len(times.prepare_ms)
    show(BENCH, case, "throughput", count / times.elapsed_s, "claims/s")
    show(BENCH, case, "cpu", times.cpu_s / count * 1e3, "ms/claim")


async def _measure_memory(
    options: Options, client: Client, kubelet: Kubelet, node: Node, devices_of: Callable[[int], list[str]]
) -> None:
    """A thousand claims and, where asked for, many more; the same ones again and again cost the API server less."""
    claims = await _make(client, "memory", 200, devices_of)
    done = 0
    for target in (1000, options.soak):
        while done < target:
            for claim in claims[: min(len(claims), target - done)]:
                await kubelet.prepare(claim)
                await kubelet.unprepare(claim)
            done += min(len(claims), target - done)
        if target:
            show(BENCH, f"after-{target}-claims", "rss", node.rss_mib(), "MiB", threads=node.threads())
