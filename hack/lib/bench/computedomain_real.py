"""ComputeDomains on real nodes: kubelets, containers, our daemons, and nvidia-imex's stand-in that really connects."""

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final, TypeVar

from cluster.shape import identity
from paths import IMAGES

from api.client import Client, Json, NotFound, path
from api.names import RESOURCE_API_VERSION
from bench.computedomain_cluster import (
    CHART,
    NAMESPACE,
    OURS,
    RELEASE,
    BenchCluster,
    Request,
    count_refused,
    short_user,
)
from bench.process import machine_busy_s, memory_mib
from bench.report import median, show

T = TypeVar("T")

BENCH: Final = "computedomain-nodes"
PROFILE: Final = "gb200:clique=1"
PATIENCE_S: Final = 180.0
SETTLE_S: Final = 3.0
_PROGRAMS: Final = ("partita-controller", "partita-imex-daemon", "partita-kubelet-plugin")


def install(cluster: BenchCluster, nodes: int) -> None:
    """The chart with compute domains, on nodes of one clique."""
    cluster.up("--nodes", str(nodes), "--profile", PROFILE)
    for image in ("partita", "busybox"):
        cluster.run("load", str(IMAGES / f"{image}.tar"))
    values = "resources.computeDomains.enabled=true,controller.enabled=true,nvidiaDriverRoot=/run/nvidia/driver"
    release = ("upgrade", "--install", RELEASE, str(CHART), "--namespace", NAMESPACE, "--create-namespace", "--wait")
    cluster.run("helm", *release, "--set", values)


async def run(cluster: BenchCluster, sizes: list[int], repetitions: int) -> None:
    async with await Client.connect(str(cluster.kubeconfig)) as client:
        bench = RealNodes(cluster, client)
        await bench.prepare(max(sizes))
        for size in sizes:
            figures: dict[str, list[float]] = {}
            for _ in range(repetitions):
                for name, value in (*(await bench.measure_plain(size)), *(await bench.measure_domain(size))):
                    figures.setdefault(name, []).append(value)
            for name, values in figures.items():
                unit = name.rpartition("_")[2] if name.endswith(("_s", "_MiB")) else ""
                spread = {"least": round(min(values), 3), "most": round(max(values), 3)}
                show(BENCH, f"{size}-nodes", name, median(values), unit, runs=len(values), **spread)
            bench.show_writes(size)


async def poll(read: Callable[[], Awaitable[T]], until: Callable[[T], bool]) -> T:
    """Where nothing is measured."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            answer = await read()
            if until(answer):
                return answer
            await asyncio.sleep(0.2)


@dataclass(slots=True)
class World:
    """Pods as a watch tells of them, and when."""

    pods: dict[str, Json] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def follow(self, client: Client) -> None:
        async for kind, found in client.list_watch(path("v1", "pods")):
            for pod in found if kind == "SYNC" else [found]:
                key = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
                if kind == "DELETED":
                    self.pods.pop(key, None)
                else:
                    self.pods[key] = pod
            self.changed.set()

    async def wait(self, holds: Callable[["World"], bool]) -> float:
        """When it first did."""
        async with asyncio.timeout(PATIENCE_S):
            while not holds(self):
                self.changed.clear()
                await self.changed.wait()
        return time.time()

    def of(self, namespace: str) -> list[Json]:
        return [pod for key, pod in self.pods.items() if key.startswith(f"{namespace}/")]

    def daemons(self) -> list[Json]:
        label = "resource.nvidia.com/computeDomain"
        return [pod for pod in self.of(NAMESPACE) if label in (pod["metadata"].get("labels") or {})]


class RealNodes:
    def __init__(self, cluster: BenchCluster, client: Client) -> None:
        self._cluster = cluster
        self._client = client
        self._nodes: list[str] = []
        self._writes: Counter[str] = Counter()
        """Of the last formation, by what and whose they are."""
        self._serial = 0

    async def prepare(self, count: int) -> None:
        """Wait for what the nodes publish."""
        selector = "spec.driver=compute-domain.nvidia.com"
        where = path("resource.k8s.io/v1", "resourceslices")
        slices = await poll(
            lambda: self._client.list(where, fieldSelector=selector), until=lambda found: len(found) == count
        )
        self._nodes = sorted(each["spec"]["nodeName"] for each in slices)

    def show_writes(self, size: int) -> None:
        """Every write of the last formation, the most frequent first."""
        show(
            BENCH,
            f"{size}-nodes",
            "domain_writes_of_the_last_run",
            self._writes.total(),
            "",
            **dict(self._writes.most_common()),
        )

    async def measure_plain(self, size: int) -> list[tuple[str, float]]:
        """The same pods without claims."""
        async with self._namespace() as namespace, self._following() as world:
            await asyncio.sleep(SETTLE_S)
            offset, busy_s = self._cluster.audit_offset(), machine_busy_s()
            running_s = await self._run_pods(world, namespace, size, claims=False)
            busy_s = machine_busy_s() - busy_s
            await asyncio.sleep(SETTLE_S)
            writes = [each for each in self._cluster.requests(offset) if each.writes]
            ending = time.time()
            gone_s = await self._end_pods(world, namespace) - ending
        return [
            ("plain_running_s", running_s),
            ("plain_gone_s", gone_s),
            ("plain_machine_cpu_s", busy_s),
            ("plain_writes", len(writes)),
            ("plain_writes_a_node", len(writes) / size),
        ]

    async def measure_domain(self, size: int) -> list[tuple[str, float]]:
        async with self._namespace() as namespace, self._following() as world:
            offset = self._cluster.audit_offset()
            await self._make_domain(namespace, size)
            await asyncio.sleep(SETTLE_S)
            started, busy_s = time.time(), machine_busy_s()
            ready = asyncio.create_task(world.wait(lambda seen: sum(map(_is_ready, seen.daemons())) == size))
            running_s = await self._run_pods(world, namespace, size, claims=True)
            busy_s = machine_busy_s() - busy_s
            daemons_s = await ready - started
            await asyncio.sleep(SETTLE_S)
            requests = self._cluster.requests(offset)
            self._writes = Counter(_describe(each) for each in requests if each.writes)
            memory = self._memory_mib()
            prepared_s = self._last_prepared(namespace) - started
            teardown_offset = self._cluster.audit_offset()
            ending_at = time.time()
            pods_gone = await self._end_pods(world, namespace)
            daemons_gone = await world.wait(lambda seen: not seen.daemons())
            await asyncio.sleep(SETTLE_S)
            ending = self._cluster.requests(teardown_offset)
        return [
            ("domain_running_s", running_s),
            ("domain_claims_allocated_s", _last_allocated(requests, namespace) - started),
            ("domain_daemons_ready_s", daemons_s),
            ("domain_channels_prepared_s", prepared_s),
            ("domain_machine_cpu_s", busy_s),
            ("domain_our_writes", len(_ours(requests))),
            ("domain_all_writes", sum(each.writes for each in requests)),
            ("domain_all_writes_a_node", sum(each.writes for each in requests) / size),
            ("domain_refused_409_429", sum(count_refused(requests).values())),
            ("domain_gone_s", pods_gone - ending_at),
            ("tear_down_daemons_after_last_pod_s", max(daemons_gone - pods_gone, 0.0)),
            ("tear_down_our_writes", len(_ours(ending))),
            *((f"{program.removeprefix('partita-')}_rss_MiB", most) for program, most in memory.items()),
        ]

    @asynccontextmanager
    async def _namespace(self) -> AsyncIterator[str]:
        self._serial += 1
        name = f"bench-{self._serial}-{int(time.time())}"
        where = path("v1", "namespaces", name=name)
        await self._client.create(path("v1", "namespaces"), {"metadata": {"name": name}})
        made = (path("v1", kind, namespace=name) for kind in ("serviceaccounts", "configmaps"))
        for collection in made:  # by the control plane: not to be counted with what follows
            await poll(lambda collection=collection: self._client.list(collection), until=bool)  # type: ignore[misc]
        try:
            yield name
        finally:
            await self._client.delete(where)
            with suppress(NotFound):
                await poll(lambda: self._client.get(where), until=lambda _: False)

    @asynccontextmanager
    async def _following(self) -> AsyncIterator[World]:
        world = World()
        task = asyncio.create_task(world.follow(self._client))
        try:
            yield world
        finally:
            task.cancel()

    async def _make_domain(self, namespace: str, size: int) -> None:
        channel = {"resourceClaimTemplate": {"name": "channel"}}
        body = {
            "apiVersion": RESOURCE_API_VERSION,
            "kind": "ComputeDomain",
            "metadata": {"name": "train"},
            "spec": {"numNodes": size, "channel": channel},
        }
        await self._client.create(path(RESOURCE_API_VERSION, "computedomains", namespace=namespace), body)
        templates = path("resource.k8s.io/v1", "resourceclaimtemplates", namespace=namespace)
        await poll(lambda: self._client.list(templates), until=bool)

    async def _run_pods(self, world: World, namespace: str, size: int, *, claims: bool) -> float:
        """Seconds from before the first is created until all run."""
        where = path("v1", "pods", namespace=namespace)
        started = time.time()
        await asyncio.gather(
            *(self._client.create(where, _build_pod(node, claims=claims)) for node in self._nodes[:size])
        )

        def all_run(seen: World) -> bool:
            phases = [pod["status"].get("phase") for pod in seen.of(namespace)]
            return len(phases) == size and set(phases) == {"Running"}

        return await world.wait(all_run) - started

    async def _end_pods(self, world: World, namespace: str) -> float:
        """When the last was gone."""
        await self._client.delete(path("v1", "pods", namespace=namespace))
        return await world.wait(lambda seen: not seen.of(namespace))

    def _last_prepared(self, namespace: str) -> float:
        """By the node plugins' own logs."""
        selector = "app.kubernetes.io/component=kubelet-plugin"
        logs = self._cluster.run(
            "kubectl", "logs", "--namespace", NAMESPACE, "--selector", selector, "--tail=-1", "--since=5m"
        )
        lines = [json.loads(line) for line in logs.splitlines() if '"claim_prepared"' in line]
        times = [line["ts"] for line in lines if str(line.get("claim", "")).startswith(f"{namespace}/")]
        return max(datetime.fromisoformat(each).timestamp() for each in times)

    def _memory_mib(self) -> dict[str, float]:
        """The most that any process of a program of ours has, in this cluster."""
        most: dict[str, float] = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError, StopIteration):
                words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
                program = next(each for each in _PROGRAMS if any(word.endswith(each) for word in words[:3]))
                if identity(self._cluster.state) in (folder / "cgroup").read_text():
                    most[program] = max(most.get(program, 0.0), memory_mib(int(folder.name)))
        return dict(sorted(most.items()))


def _build_pod(node: str, *, claims: bool) -> Json:
    container: Json = {
        "name": "main",
        "image": "docker.io/library/busybox:dev",
        "imagePullPolicy": "IfNotPresent",
        "command": ["sleep", "100000"],
    }
    spec: Json = {
        "nodeSelector": {"kubernetes.io/hostname": node},
        "terminationGracePeriodSeconds": 0,
        "containers": [container],
    }
    if claims:
        container["resources"] = {"claims": [{"name": "channel"}]}
        spec["resourceClaims"] = [{"name": "channel", "resourceClaimTemplateName": "channel"}]
    return {"metadata": {"name": f"worker-{node}"}, "spec": spec}


def _is_ready(pod: Json) -> bool:
    conditions = pod["status"].get("conditions") or ()
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def _describe(request: Request) -> str:
    user = re.sub(r"^node:.*", "kubelet", short_user(request.user))
    return f"{user}: {request.verb} {'/'.join(filter(None, (request.resource, request.subresource)))}"


def _ours(requests: list[Request]) -> list[Request]:
    return [each for each in requests if each.writes and each.user.startswith(OURS)]


def _last_allocated(requests: list[Request], namespace: str) -> float:
    wanted = ("system:kube-scheduler", namespace, "resourceclaims", "status")
    return max(each.at for each in requests if (each.user, each.namespace, each.resource, each.subresource) == wanted)
