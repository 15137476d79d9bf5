"""ComputeDomains: the shell around the planner. Caches in, plans out, and nothing decided here."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from api.client import Client, path
from api.events import Recorder
from api.names import COMPUTE_DOMAIN_DRIVER, COMPUTE_DOMAIN_LABEL, DRA_API_VERSION, RESOURCE_API_VERSION
from api.ref import Ref
from controller.apply import PartlyApplied, apply_stages
from controller.computedomain.actions import Plan
from controller.computedomain.check import check_plan
from controller.computedomain.execute import Executor
from controller.computedomain.leaving import LeavingPods
from controller.computedomain.members import plan_members
from controller.computedomain.parse import (
    parse_claim,
    parse_clique,
    parse_domain,
    parse_fabric,
    parse_pod,
    parse_template,
)
from controller.computedomain.plan import plan_domain
from controller.computedomain.state import (
    ChannelClaim,
    Clique,
    DaemonClaim,
    DaemonPod,
    Domain,
    NodeFabric,
    Observation,
    Settings,
    Standing,
    Template,
)
from controller.loop import WorkQueue
from controller.metrics import Metrics
from controller.observe import Cache, Caches

log = logging.getLogger(__name__)

PASSES: Final = 8
"""Plans in a row for one key; then others have their turn.

Each needs what the one before made (its uid, say); a formation needs three, and a large one gets news all the while.
"""
WORKERS: Final = 8
TOLERATED_S: Final = 2.0
"""A refusal that lasts no longer than this is not told."""


class ComputeDomains:
    """Watches everything that belongs to ComputeDomains and brings each of them in order."""

    def __init__(self, client: Client, settings: Settings, events: Recorder, metrics: Metrics) -> None:
        self._client = client
        self._settings = settings
        self._events = events
        self._metrics = metrics
        self.queue = WorkQueue()
        self.tell_of_fabric: Callable[[str], None] = lambda node: None
        """Called with each node that publishes another clique, or none."""
        self._held: dict[str, dict[str, float]] = {}
        """By domain: since when plans have said that something has to wait; in time.monotonic(), which nobody sets."""
        self._failures: dict[str, tuple[float, tuple[str, ...]]] = {}
        """By domain: since when it is refused something, in the same time, and what."""
        self._standings: dict[str, Standing | None] = {}
        """Of each domain (by UID): as its neighbours found it, until something that it depends on changes."""
        self._told: dict[str, tuple[Standing, frozenset[str]]] = {}
        """Of each domain with members: how it stood when its rivals (by UID) were told last."""
        self._make_caches()
        self._make_own_caches(settings.namespace)
        self.caches = self._tie_caches()
        self._leaving = LeavingPods(client, self.queue.add)
        self._executor = Executor(client, self.caches.record, self._drop)

    def _make_caches(self) -> None:
        self.domains: Cache[Domain] = Cache(
            path(RESOURCE_API_VERSION, "computedomains"),
            parse_domain,
            {"uid": lambda d: [d.ref.uid], "template": lambda d: [f"{d.ref.namespace}/{d.template_name}"]},
        )
        self.cliques: Cache[Clique] = Cache(
            path(RESOURCE_API_VERSION, "computedomaincliques"),
            parse_clique,
            {"uid": lambda c: [c.membership.domain_uid]},
        )
        self.claims: Cache[ChannelClaim | DaemonClaim] = Cache(
            path(DRA_API_VERSION, "resourceclaims"),
            parse_claim,
            {
                "uid": lambda c: [c.domain_uid],
                "node": lambda c: [c.node] if isinstance(c, ChannelClaim) else [],
                "daemon": lambda c: [c.node] if self._is_daemons(c) else [],
            },
        )
        self.templates: Cache[Template] = Cache(
            path(DRA_API_VERSION, "resourceclaimtemplates"),
            parse_template,
            {"uid": lambda t: [t.domain_uid] if t.domain_uid else []},
        )
        self.fabric: Cache[NodeFabric] = Cache(
            path(DRA_API_VERSION, "resourceslices"),
            parse_fabric,
            {"node": lambda f: [f.node]},
            field_selector=f"spec.driver={COMPUTE_DOMAIN_DRIVER}",
        )

    def _make_own_caches(self, namespace: str) -> None:
        """Of what daemons need, in the driver's namespace."""
        self.pods: Cache[DaemonPod] = Cache(
            path("v1", "pods", namespace=namespace),
            parse_pod,
            {"uid": lambda p: [p.domain_uid]},
            label_selector=COMPUTE_DOMAIN_LABEL,
        )

    def _tie_caches(self) -> Caches:
        return Caches(
            {
                "ComputeDomain": (self.domains, lambda d: self._domain_changed(d.ref.uid)),
                "ComputeDomainClique": (self.cliques, lambda c: self._domain_changed(c.membership.domain_uid)),
                "ResourceClaim": (self.claims, self._claim_changed),
                "ResourceClaimTemplate": (self.templates, self._template_changed),
                "Pod": (self.pods, lambda p: self.queue.add(p.domain_uid)),
                "ResourceSlice": (self.fabric, self._fabric_changed),
            }
        )

    def _domain_changed(self, uid: str) -> None:
        """Something that `_observe_members` sees."""
        self._standings.pop(uid, None)
        self.queue.add(uid)

    def _claim_changed(self, claim: ChannelClaim | DaemonClaim) -> None:
        """Whoever waits for the node looks at it when a daemon leaves."""
        self._domain_changed(claim.domain_uid)
        if self._is_daemons(claim):
            for there in self.claims.find("node", claim.node):
                self.queue.add(there.domain_uid)

    def _template_changed(self, template: Template) -> None:
        if template.domain_uid:
            self.queue.add(template.domain_uid)
        for domain in self.domains.find("template", str(template.ref)):
            self.queue.add(domain.ref.uid)

    def _fabric_changed(self, fabric: NodeFabric) -> None:
        self.tell_of_fabric(fabric.node)
        for claim in self.claims.find("node", fabric.node):
            self._domain_changed(claim.domain_uid)

    def _drop(self, ref: Ref) -> None:
        """Of what is cached under its name, only this incarnation is gone."""
        cache, changed = self.caches[ref.kind]
        cached = cache.get(ref.namespace, ref.name)
        if cached is not None and cached.ref.uid == ref.uid:
            cache.drop(ref.namespace, ref.name, changed)

    def count(self, status: str) -> int:
        """ComputeDomains whose `status.status` is this one."""
        found = (next(self.domains.find("uid", uid)) for uid in self.domains.keys("uid"))
        return sum(domain.status.get("status", "NotReady") == status for domain in found)

    async def run(self) -> None:
        """Work until cancelled; nothing is planned before every cache has been filled once."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._leaving.run())
            await self.caches.run(self._client, lambda: self.queue.run(self.reconcile, WORKERS))

    def observe(self, uid: str, now: float) -> Observation:
        """The caches as they are now, for one domain."""
        seen = self._observe_members(uid, now)
        nodes = _find_nodes(seen)
        rivals, leftovers = self._find_neighbours(uid, nodes)
        claims = [claim for claim in self.claims.find("uid", uid) if isinstance(claim, DaemonClaim)]
        return replace(
            seen,
            rivals=rivals,
            leftovers=leftovers,
            pods=tuple(self.pods.find("uid", uid)),
            daemon_claims=tuple(claim for claim in claims if self._is_ours(claim.ref)),
            taken={node: str(other) for node in nodes for other in self._find_daemons(node, uid)},
            templates=self._find_templates(uid, seen.domain),
            held_s={name: time.monotonic() - since for name, since in self._held.get(uid, {}).items()},
            leaving=self._leaving.known(uid),
            failures=self._lasting_failures(uid),
        )

    def _observe_members(self, uid: str, now: float) -> Observation:
        """What decides who belongs to the domain, and how it stands among others."""
        claims = tuple(claim for claim in self.claims.find("uid", uid) if isinstance(claim, ChannelClaim))
        nodes = {claim.node for claim in claims}
        cliques = list(self.cliques.find("uid", uid))
        published = {node: found for node in nodes for found in self.fabric.find("node", node)}
        return Observation(
            now=now,
            uid=uid,
            domain=self._find_domain(uid),
            claims=claims,
            fabric={node: found.clique_id for node, found in published.items()},
            keys={node: found.public_key for node, found in published.items() if found.public_key},
            cliques=tuple(clique for clique in cliques if self._is_ours(clique.ref)),
            strays=tuple(clique for clique in cliques if not self._is_ours(clique.ref)),
        )

    def _find_domain(self, uid: str) -> Domain | None:
        return next(self.domains.find("uid", uid), None)

    def _find_neighbours(self, uid: str, nodes: set[str]) -> tuple[tuple[Standing, ...], dict[str, Ref]]:
        """How the other domains on these nodes stand; and by node, a claim there whose domain is gone or goes by force.

        Any number of claims may name domains that never were. So one that is not there is no rival, and of claims
        that are left over the first by name is enough.
        """
        there: dict[str, Domain | None] = {}
        leftovers: dict[str, Ref] = {}
        for claim in (claim for node in nodes for claim in self.claims.find("node", node) if claim.domain_uid != uid):
            if claim.domain_uid not in there:
                there[claim.domain_uid] = self._find_domain(claim.domain_uid)
            domain = there[claim.domain_uid]
            if domain is None or (domain.deleted_at is not None and domain.force):
                leftovers[claim.node] = min(leftovers.get(claim.node, claim.ref), claim.ref, key=str)
        standings = [self._find_standing(other) for other in sorted(there) if there[other] is not None]
        return tuple(standing for standing in standings if standing is not None), leftovers

    def _find_standing(self, uid: str) -> Standing | None:
        if uid not in self._standings:
            self._standings[uid] = plan_members(self._observe_members(uid, 0.0), self._settings).standing
        return self._standings[uid]

    def _lasting_failures(self, uid: str) -> tuple[str, ...]:
        """What passes by itself (an API server that has just started knows no roles yet) is not worth a word."""
        since, refused = self._failures.get(uid, (0.0, ()))
        return refused if time.monotonic() - since >= TOLERATED_S else ()

    def _find_daemons(self, node: str, but_of: str) -> list[Ref]:
        """The claims of the daemons of other domains on a node."""
        return [claim.ref for claim in self.claims.find("daemon", node) if claim.domain_uid != but_of]

    def _is_daemons(self, claim: ChannelClaim | DaemonClaim) -> bool:
        return isinstance(claim, DaemonClaim) and self._is_ours(claim.ref)

    def _is_ours(self, ref: Ref) -> bool:
        """Labels are anybody's to write; the driver's namespace is not."""
        return ref.namespace == self._settings.namespace

    def _find_templates(self, uid: str, domain: Domain | None) -> tuple[Template, ...]:
        """Those made for the domain, in its own namespace while it exists; and the one of the name it wants."""
        made = [template for template in self.templates.find("uid", uid) if template.is_owned]
        if domain is None:
            return tuple(made)
        wanted = self.templates.get(domain.ref.namespace, domain.template_name)
        near = [template for template in made if template.ref.namespace == domain.ref.namespace]
        return tuple(near if wanted is None or wanted in near else [*near, wanted])

    async def reconcile(self, uid: str) -> float | None:
        """Bring one domain in order; answers when to look again. Raises PartitaError for the queue's back-off."""
        started = time.monotonic()
        done: tuple[Any, ...] = ()
        for _ in range(PASSES):
            plan = self._plan(uid)
            if not plan.actions:
                if self._failures.pop(uid, None) is not None:
                    continue  # what was refused need not be done any more: the status may still tell of it
                self._metrics.reconciled(time.monotonic() - started)
                return plan.wake_after_s
            if plan.actions == done:
                message = f"{_describe(done[0])} was done, and is still to be done"
                self._note_failures(uid, (message,))
                raise PartlyApplied(f"ComputeDomain {uid}: {message}")
            await self._carry_out(uid, plan)
            done = plan.actions
        return 0.0

    def _plan(self, uid: str) -> Plan:
        seen = self.observe(uid, time.time())
        plan = plan_domain(seen, self._settings)
        check_plan(plan, seen, self._settings)
        self._tell_rivals(seen, plan.members.standing)
        self._hold(uid, plan.held)
        self._leaving.follow(uid, seen.domain.ref.namespace if seen.domain and plan.follow_pods else None)
        for report in plan.reports:
            self._events.report(report.regarding, report.kind, report.reason, "Reconcile", report.note)
        return plan

    def _hold(self, uid: str, names: tuple[str, ...]) -> None:
        before, now = self._held.pop(uid, {}), time.monotonic()
        if names:
            self._held[uid] = {name: before.get(name, now) for name in names}

    def _tell_rivals(self, seen: Observation, standing: Standing | None) -> None:
        """Where a domain stands decides what the others on its nodes may do."""
        before, others = self._told.get(seen.uid, (None, frozenset[str]()))
        rivals = frozenset(rival.uid for rival in seen.rivals)
        if standing is None:
            self._told.pop(seen.uid, None)
        else:
            self._told[seen.uid] = (standing, rivals)
        if standing != before:
            for uid in sorted(rivals | others):
                self.queue.add(uid)

    async def _carry_out(self, uid: str, plan: Plan) -> None:
        started = time.monotonic()
        refused = await apply_stages(plan.stages, self._execute)
        for action in plan.actions:
            self._metrics.acted(type(action).__name__)
        log.info(
            "plan_applied",
            extra={
                "domain": uid,
                "situation": plan.situation.value,
                "actions": [_describe(action) for action in plan.actions[:20]],
                "took_s": round(time.monotonic() - started, 4),
            },
        )
        if not refused:
            self._failures.pop(uid, None)
            return
        self._note_failures(uid, refused)
        raise PartlyApplied(refused[0])

    def _note_failures(self, uid: str, refused: tuple[str, ...]) -> None:
        since = self._failures[uid][0] if uid in self._failures else time.monotonic()
        self._failures[uid] = (since, refused)

    async def _execute(self, action: Any) -> None:
        await self._executor.execute(action)


def _find_nodes(seen: Observation) -> set[str]:
    """Where claims are that may be the domain's: others' claims that name it are no reason to look around there."""
    namespace = seen.domain.ref.namespace if seen.domain else None
    return {claim.node for claim in seen.claims if claim.ref.namespace == namespace}


def _describe(action: Any) -> str:
    return f"{type(action).__name__} {action.ref.kind} {action.ref}"
