"""Large ComputeDomains: real API server, scheduler, controller manager and controller; simulated nodes and daemons.

Counted from the last claim allocated (the scheduler's own write, by the audit log) to all channels prepared.
"""

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from api.client import Client, Conflict, Json, NotFound, path
from api.names import RESOURCE_API_VERSION
from bench.computedomain_cluster import (
    CONTROLLER,
    NAMESPACE,
    OURS,
    BenchCluster,
    Controller,
    Request,
    count_refused,
    short_user,
)
from bench.computedomain_nodes import RACK, node_name
from bench.process import cpu_s
from bench.report import show

BENCH: Final = "computedomain-scale"
IN_FLIGHT: Final = 32
IDLE_S: Final = 10.0
SETTLE_S: Final = 3.0
WIDE_RACK: Final = RACK // 4 * 4
"""Nodes of a rack that domains of four use: none of them spans two racks."""


@dataclass(frozen=True, slots=True)
class Case:
    """So many domains of so many nodes each, at once."""

    nodes: int
    domains: int = 1

    @property
    def name(self) -> str:
        return f"{self.nodes}-nodes" if self.domains == 1 else f"{self.domains}-domains-of-{self.nodes}"

    def placements(self) -> list[tuple[str, str]]:
        """Domain and node of every pod."""
        if self.domains == 1:
            return [("d0", node_name(number)) for number in range(self.nodes)]
        numbers = [number for number in range(self.domains * self.nodes * 2) if number % RACK < WIDE_RACK]
        return [(f"d{index // self.nodes}", node_name(numbers[index])) for index in range(self.domains * self.nodes)]


@dataclass(slots=True)
class Told:
    """What the simulated nodes said."""

    times: dict[str, list[float]] = field(default_factory=dict)
    troubles: Counter[str] = field(default_factory=Counter)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, line: Json) -> None:
        if line["what"] in ("repeated", "failed"):
            self.troubles[f"{line['what']}: {line['error'][:160]}"] += 1
        self.times.setdefault(line["what"], []).append(line["at"])
        self.changed.set()

    async def wait(self, what: str, count: int, timeout_s: float) -> float:
        """When the last of them was. Raises TimeoutError, which says how many there were."""
        try:
            async with asyncio.timeout(timeout_s):
                while len(self.times.get(what, ())) < count:
                    self.changed.clear()
                    await self.changed.wait()
        except TimeoutError as error:
            got = {name: len(times) for name, times in self.times.items()}
            raise TimeoutError(f"{what}: not {count} after {timeout_s:.0f} s, but {got}; {self.troubles}") from error
        return max(self.times[what], default=0.0)


class Nodes:
    """The processes that simulate nodes."""

    def __init__(self, cluster: BenchCluster, base: Path, count: int, processes: int) -> None:
        self.told = Told()
        self._options = ["--kubeconfig", str(cluster.kubeconfig), "--base", str(base / "nodes")]
        self._options += ["--root", str(base / "driver"), "--nodes", str(count), "--step", str(processes)]
        self._count = processes
        self._processes: list[asyncio.subprocess.Process] = []
        self._readers: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        for first in range(self._count):
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "bench.computedomain_nodes",
                *self._options,
                "--first",
                str(first),
                stdout=asyncio.subprocess.PIPE,
            )
            self._processes.append(process)
            self._readers.append(asyncio.create_task(self._read(process)))
        await self.told.wait("published", self._count, 300.0)

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            self.told.take(json.loads(line))

    async def stop(self) -> None:
        for process in self._processes:
            if process.returncode is None:
                process.kill()
            await process.wait()
        await asyncio.gather(*self._readers)


async def run(cluster: BenchCluster, base: Path, cases: list[Case], processes: int, timeout_s: float) -> None:
    controller = Controller(cluster, base)
    controller.start()
    try:
        async with await Client.connect(str(cluster.kubeconfig)) as client:
            await _until(controller.leads, 60.0)
            for case in cases:
                try:
                    await Trial(cluster, client, controller, case, timeout_s).run(base, processes)
                except TimeoutError as error:
                    show(BENCH, case.name, "completed", 0, "", error=str(error)[:1000])
                    break
    finally:
        controller.stop()


async def _until(probe: Callable[[], Awaitable[bool]], timeout_s: float) -> None:
    async with asyncio.timeout(timeout_s):
        while True:
            if await probe():
                return
            await asyncio.sleep(0.1)


class Trial:
    """One case from an empty cluster to an empty cluster."""

    def __init__(
        self, cluster: BenchCluster, client: Client, controller: Controller, case: Case, timeout_s: float
    ) -> None:
        self._cluster = cluster
        self._client = client
        self._controller = controller
        self._case = case
        self._timeout_s = timeout_s
        self._namespace = f"scale-{case.name}-{int(time.time())}"
        self._pods = path("v1", "pods", namespace=self._namespace)
        self._gate = asyncio.Semaphore(IN_FLIGHT)

    async def run(self, base: Path, processes: int) -> None:
        placements = self._case.placements()
        highest = max(int(node.rpartition("-")[2]) for _, node in placements)
        nodes = Nodes(self._cluster, base, highest + 1, processes)
        try:
            await nodes.start()
            offset = self._cluster.audit_offset()
            await self._make_domains()
            await self._measure(nodes, placements, offset)
            await self._tear_down(nodes.told, len(placements))
        finally:
            await nodes.stop()

    async def _make_domains(self) -> None:
        await self._client.create(path("v1", "namespaces"), {"metadata": {"name": self._namespace}})
        where = path(RESOURCE_API_VERSION, "computedomains", namespace=self._namespace)
        await asyncio.gather(*(self._create(where, self._domain(f"d{n}")) for n in range(self._case.domains)))
        templates = path("resource.k8s.io/v1", "resourceclaimtemplates", namespace=self._namespace)

        async def there() -> bool:
            return len(await self._client.list(templates)) == self._case.domains

        await _until(there, 60.0)
        await asyncio.sleep(SETTLE_S)

    def _domain(self, name: str) -> Json:
        channel = {"resourceClaimTemplate": {"name": f"{name}-channel"}}
        return {
            "apiVersion": RESOURCE_API_VERSION,
            "kind": "ComputeDomain",
            "metadata": {"name": name},
            "spec": {"numNodes": self._case.nodes, "channel": channel},
        }

    async def _create(self, where: str, body: Json) -> None:
        async with self._gate:
            try:
                await self._client.create(where, body)
            except Conflict:
                return

    def _cpu_s(self, nodes: Nodes) -> dict[str, float]:
        simulated = sum(cpu_s(pid) for pid in nodes.pids)
        return {**self._cluster.cpu_s(), "controller": self._controller.cpu_s(), "simulated nodes": simulated}

    async def _measure(self, nodes: Nodes, placements: list[tuple[str, str]], offset: int) -> None:
        """`offset`: where the audit log tells of the ComputeDomains' creation."""
        told = nodes.told
        before = self._cpu_s(nodes)
        started = time.time()
        pods = [_worker(f"w{index}", domain, node) for index, (domain, node) in enumerate(placements)]
        await asyncio.gather(*(self._create(self._pods, pod) for pod in pods))
        prepared = await told.wait("channel", len(pods), self._timeout_s)
        await asyncio.sleep(SETTLE_S)
        spent_s = {name: round(value - before[name], 2) for name, value in self._cpu_s(nodes).items()}
        requests = self._cluster.requests(offset)
        allocated = max(each.at for each in requests if self._allocates(each))
        daemons = max(told.times["daemon-ready"])
        case = self._case.name
        show(BENCH, case, "last_allocated_to_all_prepared", prepared - allocated, "s", daemon_start_s=0)
        show(BENCH, case, "last_allocated_to_daemons_ready", daemons - allocated, "s", daemon_start_s=0)
        show(BENCH, case, "created_to_all_prepared", prepared - started, "s")
        show(BENCH, case, "created_to_last_allocated", allocated - started, "s")
        _show_writes(case, requests, len(pods), told)
        show(BENCH, case, "cpu_until_settled", sum(spent_s.values()), "s", **spent_s)
        show(BENCH, case, "controller_rss", self._controller.rss_mib(), "MiB", peak=round(self._controller.peak_mib()))
        idle_s = self._controller.cpu_s()
        await asyncio.sleep(IDLE_S)
        show(BENCH, case, "controller_idle_cpu", (self._controller.cpu_s() - idle_s) / IDLE_S * 100, "%")

    def _allocates(self, request: Request) -> bool:
        return (
            request.user == "system:kube-scheduler"
            and request.namespace == self._namespace
            and (request.resource, request.subresource, request.code) == ("resourceclaims", "status", 200)
        )

    async def _tear_down(self, told: Told, count: int) -> None:
        started = time.time()
        offset = self._cluster.audit_offset()
        await self._client.delete(self._pods, gracePeriodSeconds=1)
        ended = await told.wait("gone", count, self._timeout_s)
        daemons = path("v1", "pods", namespace=NAMESPACE)

        async def empty() -> bool:
            return not await self._client.list(daemons)

        await _until(empty, self._timeout_s)
        case = self._case.name
        show(BENCH, case, "last_pod_gone_to_daemons_gone", max(told.times["daemon-gone"]) - ended, "s")
        show(BENCH, case, "tear_down", time.time() - started, "s")
        requests = self._cluster.requests(offset)
        ours = [each for each in requests if each.user == CONTROLLER and each.writes]
        show(BENCH, case, "tear_down_our_writes", len(ours), "", a_node=round(len(ours) / count, 2))
        show(BENCH, case, "tear_down_refused", sum(count_refused(requests).values()), "", **count_refused(requests))
        await self._client.delete(namespace := path("v1", "namespaces", name=self._namespace))

        async def gone() -> bool:
            try:
                await self._client.get(namespace)
            except NotFound:
                return True
            return False

        await _until(gone, self._timeout_s)


def _show_writes(case: str, requests: list[Request], count: int, told: Told) -> None:
    ours = [each for each in requests if each.writes and each.user.startswith(OURS)]
    by_user = Counter(short_user(each.user) for each in requests if each.writes)
    show(BENCH, case, "our_writes", len(ours), "", a_node=round(len(ours) / count, 2))
    kinds = Counter(f"{each.verb} {each.resource} {each.code}" for each in ours)
    show(BENCH, case, "our_writes_a_node", len(ours) / count, "", **dict(kinds.most_common()))
    total = sum(each.writes for each in requests)
    # Simulated kubelets write as the cluster's administrator.
    show(BENCH, case, "all_writes", total, "", a_node=round(total / count, 2), **dict(by_user.most_common(8)))
    reads = Counter(f"{each.verb} {each.resource}" for each in requests if not each.writes)
    show(BENCH, case, "all_reads", sum(reads.values()), "", **dict(reads.most_common(8)))
    refused = count_refused(requests)
    show(BENCH, case, "refused_409_429", sum(refused.values()), "", **refused)
    if told.troubles:
        show(BENCH, case, "troubles", sum(told.troubles.values()), "", **dict(told.troubles.most_common(5)))


def _worker(name: str, domain: str, node: str) -> Json:
    container = {"name": "main", "image": "simulated", "resources": {"claims": [{"name": "channel"}]}}
    return {
        "metadata": {"name": name},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": node},
            "tolerations": [{"operator": "Exists"}],
            "containers": [container],
            "resourceClaims": [{"name": "channel", "resourceClaimTemplateName": f"{domain}-channel"}],
        },
    }
