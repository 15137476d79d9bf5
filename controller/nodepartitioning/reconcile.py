"""Nodes of AMD GPUs: the shell around the planner. Caches in, plans out, and nothing decided here."""

import logging
import time
from collections.abc import Iterable
from itertools import groupby
from typing import Any, Final

from api.client import Client, path
from api.events import Recorder
from api.kaiwo import CONFIG_MAP_NAME, CONFIG_MAP_NAMESPACE, ENABLED_LABEL
from api.names import AMD_GPU_DRIVER, DRA_API_VERSION, KAIWO_API_VERSION
from api.ref import Ref
from controller.apply import PartlyApplied, apply_stages
from controller.loop import WorkQueue
from controller.metrics import Metrics
from controller.nodepartitioning.actions import Action, AddTolerations, EvictPod, Plan
from controller.nodepartitioning.admission import States, admit, find_unavailable
from controller.nodepartitioning.execute import WORKLOADS, Executor
from controller.nodepartitioning.parse import (
    Holding,
    StoredKaiwoNode,
    StoredProfiles,
    StoredSlice,
    combine_slices,
    find_dcm,
    parse_config_map,
    parse_holding,
    parse_kaiwo_node,
    parse_node,
    parse_pod,
    parse_slice,
    parse_workload,
)
from controller.nodepartitioning.plan_steps import plan_node
from controller.nodepartitioning.sense import KUBE_SYSTEM
from controller.nodepartitioning.state import Node, Observation, Pod, Settings, Workload
from controller.observe import Cache, Caches

log = logging.getLogger(__name__)

PASSES: Final = 12
"""Plans in a row for one node; a partitioning that waits for nobody needs nine."""
_EMPTYING: Final = frozenset({"Pending", "DrainingUntoleratedPods"})


class NodePartitioning:
    """Watches nodes of AMD GPUs and brings each into the mode that is asked for."""

    def __init__(self, client: Client, settings: Settings, events: Recorder, metrics: Metrics) -> None:
        self._client = client
        self._settings = settings
        self._events = events
        self._metrics = metrics
        self._workloads: tuple[Workload, ...] = ()
        self._workloads_until = 0.0
        self.queue = WorkQueue()
        self.nodes: Cache[Node] = Cache(path("v1", "nodes"), parse_node, {"all": lambda n: [""]})
        self.kaiwo_nodes: Cache[StoredKaiwoNode] = Cache(
            path(KAIWO_API_VERSION, "kaiwonodes"), parse_kaiwo_node, {"all": lambda k: [""]}
        )
        self.slices: Cache[StoredSlice] = Cache(
            path(DRA_API_VERSION, "resourceslices"),
            parse_slice,
            {"node": lambda s: [s.node]},
            field_selector=f"spec.driver={AMD_GPU_DRIVER}",
        )
        self.holdings: Cache[Holding] = Cache(
            path(DRA_API_VERSION, "resourceclaims"), parse_holding, {"node": lambda h: h.nodes}
        )
        self.profiles: Cache[StoredProfiles] = Cache(
            path("v1", "configmaps", namespace=CONFIG_MAP_NAMESPACE),
            parse_config_map,
            {},
            field_selector=f"metadata.name={CONFIG_MAP_NAME}",
        )

        self.caches = Caches(
            {
                "Node": (self.nodes, lambda node: self.queue.add(node.name)),
                "KaiwoNode": (self.kaiwo_nodes, lambda stored: self.queue.add(stored.name)),
                "ResourceSlice": (self.slices, lambda piece: self.queue.add(piece.node)),
                "ResourceClaim": (self.holdings, self._holding_changed),
                "ConfigMap": (self.profiles, self._profiles_changed),
            }
        )
        self._executor = Executor(client, self.caches.record)

    def _holding_changed(self, holding: Holding) -> None:
        for node in holding.nodes:
            if self._phase(node) in _EMPTYING:
                self.queue.add(node)

    def _profiles_changed(self, _: StoredProfiles) -> None:
        for stored in self.kaiwo_nodes.find("all", ""):
            self.queue.add(stored.name)

    def _phase(self, name: str) -> str:
        stored = self.kaiwo_nodes.get("", name)
        return stored.kaiwo.status.partitioning.phase if stored else ""

    async def run(self) -> None:
        """Work until cancelled; nothing is planned before every cache has been filled once."""
        # One worker: how many nodes may be partitioned at a time is counted over all of them.
        await self.caches.run(self._client, lambda: self.queue.run(self.reconcile, 1))

    async def reconcile(self, name: str) -> float | None:
        """Bring one node in order; answers when to look again. Raises PartitaError for the queue's back-off."""
        started = time.monotonic()
        for _ in range(PASSES):
            seen = await self._observe(name)
            if seen is None:
                return None
            plan = plan_node(seen, self._settings)
            await self._carry_out(seen.node, plan)
            if not plan.actions or plan.wake_after_s:
                self._metrics.reconciled(time.monotonic() - started)
                return plan.wake_after_s
        raise PartlyApplied(f"node {name}: after {PASSES} plans there is still {type(plan.actions[0]).__name__}")

    async def _observe(self, name: str) -> Observation | None:
        """None for a node that is none of ours."""
        node = self.nodes.get("", name)
        stored = self.kaiwo_nodes.get("", name)
        published = combine_slices(self.slices.find("node", name))
        if node is None:
            return None
        if stored is None and not published and ENABLED_LABEL not in node.labels and not node.is_touched:
            return None
        config = self.profiles.get(CONFIG_MAP_NAMESPACE, CONFIG_MAP_NAME)
        phase, states = self._phase(name), self._states()
        is_admitted = name in admit(states, self._settings)
        begins = phase == "Pending" and is_admitted  # who waits for others asks for nothing
        raw = await self._list_pods(name) if begins or phase == "DrainingUntoleratedPods" else []
        dcm_present, dcm_unready = find_dcm(raw)
        return Observation(
            now=time.time(),
            node=node,
            kaiwo=stored.kaiwo if stored is not None and stored.owner == node.uid else None,
            profiles=config.profiles if config else None,
            profiles_fault=config.fault if config else "",
            pods=self._parse_pods(name, raw),
            refused=self._executor.refused,
            kube_system=await self._list_workloads() if begins else (),
            published=published,
            dcm_present=dcm_present,
            dcm_unready=dcm_unready,
            is_admitted=is_admitted,
            unavailable=tuple(f"{who} {why}" for who, why in find_unavailable(states).items()),
        )

    def _states(self) -> States:
        return [
            (node, stored.kaiwo.status.partitioning)
            for stored in self.kaiwo_nodes.find("all", "")
            if (node := self.nodes.get("", stored.name)) is not None
        ]

    async def _list_pods(self, node: str) -> list[dict[str, Any]]:
        """Asked for when they matter: a cluster has more pods than are worth to be remembered."""
        return await self._client.list(path("v1", "pods"), fieldSelector=f"spec.nodeName={node}")

    def _parse_pods(self, node: str, raw: Iterable[dict[str, Any]]) -> tuple[Pod, ...]:
        holdings = tuple(self.holdings.find("node", node))
        return tuple(pod for each in raw if (pod := parse_pod(each, holdings)) is not None)

    async def _list_workloads(self) -> tuple[Workload, ...]:
        """The same for all nodes, so that a list serves those that begin together."""
        if not self._settings.tolerate_kube_system:
            return ()
        if time.monotonic() >= self._workloads_until:
            self._workloads = tuple(
                [
                    parse_workload(each, kind)
                    for kind, plural in WORKLOADS.items()
                    for each in await self._client.list(path("apps/v1", plural, namespace=KUBE_SYSTEM))
                ]
            )
            self._workloads_until = time.monotonic() + self._settings.poll_s
        return self._workloads

    async def _carry_out(self, node: Node, plan: Plan) -> None:
        for report in plan.reports:
            stored = self.kaiwo_nodes.get("", node.name)
            about = [Ref("Node", "", node.name, node.uid)]
            about += [Ref("KaiwoNode", "", node.name, stored.uid)] if stored else []
            for ref in about:
                self._events.report(ref, report.kind, report.reason, "Reconcile", report.note)
        if not plan.actions:
            return
        started = time.monotonic()
        if any(isinstance(action, AddTolerations) for action in plan.actions):
            self._workloads_until = 0.0
        refused = await apply_stages(_stages(plan.actions), self._executor.execute)
        for action in plan.actions:
            self._metrics.acted(type(action).__name__)
        log.info(
            "plan_applied",
            extra={
                "node": node.name,
                "phase": self._phase(node.name),
                "actions": [type(action).__name__ for action in plan.actions],
                "took_s": round(time.monotonic() - started, 4),
            },
        )
        if refused:
            about_node = Ref("Node", "", node.name, node.uid)
            self._events.warn(about_node, "PartitioningRefused", "Reconcile", refused[0])
            raise PartlyApplied(refused[0])


def _stages(actions: Iterable[Action]) -> list[list[Action]]:
    """One after the other, but for what concerns many objects: none of those waits for another."""
    stages: list[list[Action]] = []
    for kind, group in groupby(actions, key=type):
        together = list(group)
        stages += [together] if kind in (EvictPod, AddTolerations) else [[action] for action in together]
    return stages
