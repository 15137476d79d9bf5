"""A cluster in memory that carries out plans: API server, garbage collector, scheduler and kubelets, step by step.

It knows nothing of why a plan says what it says; it only does to its objects what the real ones would do.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from api.clique import Moment, parse_membership
from api.ref import Ref
from controller.computedomain.actions import (
    Action,
    AddFinalizer,
    Create,
    Delete,
    DropFinalizer,
    Plan,
    WriteBinding,
    WriteMembership,
    WriteStatus,
)
from controller.computedomain.check import check_plan
from controller.computedomain.members import plan_members
from controller.computedomain.objects import DAEMON_GRACE_S
from controller.computedomain.plan import plan_domain
from controller.computedomain.state import (
    ChannelClaim,
    Clique,
    DaemonClaim,
    DaemonPod,
    Domain,
    Observation,
    Phase,
    Settings,
    Template,
)
from controller.computedomain.status import find_condition
from controller.settings import parse_settings

UID = "d0"
DEFAULTS = parse_settings([], {"POD_NAMESPACE": "driver", "IMAGE": "partita:dev"}).domains
SETTINGS = replace(DEFAULTS, max_nodes_per_imex_domain=3)
FABRIC = {"n0": "f.0", "n1": "f.0", "n2": "f.0", "n3": "f.0", "m0": "f.1", "m1": "f.1", "plain": ""}


def certificate(public_key: str, index: int) -> str:
    """None for a node without a key."""
    return public_key and f"{public_key} is member {index}"


def make_domain(**changes: Any) -> Domain:
    ref = Ref("ComputeDomain", "team", "train", UID)
    return replace(Domain(ref, generation=1, num_nodes=2, template_name="channel"), **changes)


@dataclass
class World:
    """`domain` is None once it is gone. Everything else is keyed by name."""

    domain: Domain | None = field(default_factory=make_domain)
    uid: str = UID
    settings: Settings = SETTINGS
    fabric: dict[str, str] = field(default_factory=lambda: dict(FABRIC))
    keys: dict[str, str] = field(default_factory=lambda: {node: f"key of {node}" for node in FABRIC})
    claims: dict[str, ChannelClaim] = field(default_factory=dict)
    cliques: dict[str, Clique] = field(default_factory=dict)
    bodies: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What is stored of each incarnation of a ComputeDomainClique."""
    pods: dict[str, DaemonPod] = field(default_factory=dict)
    daemon_claims: dict[str, DaemonClaim] = field(default_factory=dict)
    templates: dict[str, Template] = field(default_factory=dict)
    leaving: set[str] = field(default_factory=set)
    held: dict[str, float] = field(default_factory=dict)
    now: float = 1_000_000.0
    serial: int = 0
    rivals: "list[World]" = field(default_factory=list)
    """Other domains in the same cluster."""
    writes: list[Action] = field(default_factory=list)
    statuses: list[str] = field(default_factory=list)

    # -- what the controller does

    def observe(self) -> Observation:
        standings = [plan_members(rival.observe_alone(), self.settings).standing for rival in self.rivals]
        rivals = tuple(standing for standing in standings if standing is not None)
        ended = [rival for rival in self.rivals if rival.domain is None or rival.domain.force]
        leftovers = {claim.node: claim.ref for rival in ended for claim in rival.claims.values()}
        taken = {claim.node: str(claim.ref) for rival in self.rivals for claim in rival.daemon_claims.values()}
        return replace(self.observe_alone(), rivals=rivals, leftovers=leftovers, taken=taken)

    def observe_alone(self) -> Observation:
        return Observation(
            now=self.now,
            uid=self.uid,
            domain=self.domain,
            claims=tuple(self.claims.values()),
            fabric=dict(self.fabric),
            keys=dict(self.keys),
            cliques=tuple(c for c in self.cliques.values() if c.ref.namespace == self.settings.namespace),
            strays=tuple(c for c in self.cliques.values() if c.ref.namespace != self.settings.namespace),
            pods=tuple(self.pods.values()),
            daemon_claims=tuple(self.daemon_claims.values()),
            templates=tuple(self.templates.values()),
            held_s={name: self.now - since for name, since in self.held.items()},
            leaving=frozenset(self.leaving),
        )

    def plan(self) -> Plan:
        seen = self.observe()
        plan = plan_domain(seen, self.settings)
        check_plan(plan, seen, self.settings)
        self.held = {key: self.held.get(key, self.now) for key in plan.held}
        return plan

    @property
    def gathers(self) -> bool:
        """A write waits for others. (Of pods and claims it is measured for how long something has been so.)"""
        return any(not name.startswith(("pod ", "claim ")) for name in self.held)

    def apply(self, action: Action) -> None:
        self.writes.append(action)
        match action:
            case AddFinalizer():
                self.domain = self.domain and replace(self.domain, has_finalizer=True)
            case DropFinalizer(ref=ref) if ref.kind == "ResourceClaimTemplate":
                self.templates = {n: t for n, t in self.templates.items() if t.ref.uid != ref.uid}
            case DropFinalizer():
                self.domain = None
            case Create(ref=ref, body=body):
                self._create(ref, body)
            case Delete(ref=ref, at_once=True):
                self.lose_pod(ref.name)
            case Delete(ref=ref):
                self._delete(ref)
            case WriteMembership(ref=ref, resource_version=version, fields=fields):
                clique = self.cliques.get(ref.name)
                if clique and clique.resource_version == version and not clique.terminating:
                    self._store_clique(clique.ref, {**self.bodies[clique.ref.uid], **fields})
            case WriteBinding(ref=ref, conditions=conditions):
                formed, failed = (condition["status"] == "True" for condition in conditions)
                claim = self.claims[ref.name]
                assert claim.binding is not None
                self.claims[ref.name] = replace(claim, binding=replace(claim.binding, formed=formed, failed=failed))
            case WriteStatus(status=status):
                self.domain = self.domain and replace(self.domain, status=status)
                self.statuses.append(status["status"])

    def _uid(self) -> str:
        self.serial += 1
        return f"u{self.serial}"

    def _create(self, ref: Ref, body: dict[str, Any]) -> None:
        """Names are unique: what exists already stays as it is."""
        made = Ref(ref.kind, ref.namespace, ref.name, self._uid())
        owner = (body["metadata"].get("ownerReferences") or [{}])[0].get("uid", "")
        node = (body["metadata"].get("annotations") or {}).get("resource.nvidia.com/node", "")
        match ref.kind:
            case "ComputeDomainClique":
                if ref.name not in self.cliques:
                    self._store_clique(made, body)
            case "ResourceClaim":
                self.daemon_claims.setdefault(ref.name, DaemonClaim(made, self.uid, node, owner))
            case "Pod":
                clique = body["metadata"]["labels"]["resource.nvidia.com/computeDomain.cliqueID"]
                pod = DaemonPod(made, self.uid, node, clique, owner, created_at=self.now)
                self.pods.setdefault(ref.name, pod)
            case "ResourceClaimTemplate":
                self.templates.setdefault(ref.name, Template(made, self.uid))

    def _store_clique(self, ref: Ref, body: dict[str, Any]) -> None:
        """With the certificates that it lacks, as who writes it makes them."""
        self.serial += 1
        daemons = [
            {**entry, "certificate": entry["certificate"] or certificate(entry["publicKey"], entry["index"])}
            for entry in body["daemons"]
        ]
        body = {**body, "daemons": daemons}
        membership = parse_membership({**body, "metadata": {"name": ref.name}})
        self.bodies[ref.uid] = body
        self.cliques[ref.name] = Clique(ref, f"v{self.serial}", membership)

    def _delete(self, ref: Ref) -> None:
        match ref.kind:
            case "Pod":
                pod = self.pods.get(ref.name)
                if pod and pod.ref.uid == ref.uid:
                    self.pods[ref.name] = self._terminate(pod)
            case "ResourceClaim":
                claim = self.daemon_claims.get(ref.name)
                if claim and claim.ref.uid == ref.uid:
                    self.daemon_claims[ref.name] = replace(claim, terminating=True)
            case "ComputeDomainClique":
                self.cliques = {n: c for n, c in self.cliques.items() if c.ref.uid != ref.uid}
            case "ResourceClaimTemplate":
                deleted = {n: replace(t, terminating=True) for n, t in self.templates.items() if t.ref.uid == ref.uid}
                self.templates |= deleted
                self.templates = {n: t for n, t in self.templates.items() if t.has_finalizer or n not in deleted}

    # -- what everybody else does

    def add_claim(self, node: str, name: str | None = None, namespace: str = "team") -> None:
        name = name or f"{node}-{self.serial}"
        ref = Ref("ResourceClaim", namespace, name, self._uid())
        pod = Ref("Pod", namespace, f"pod-{name}", f"uid-of-pod-{name}")
        self.claims[name] = ChannelClaim(ref, self.uid, node, Moment(self.now, is_known=True), (pod,))

    def end_claims(self, node: str) -> None:
        self.claims = {name: claim for name, claim in self.claims.items() if claim.node != node}

    def give_up_pods(self, node: str) -> None:
        """They are being deleted before they have started."""
        self.leaving |= {pod.uid for claim in self.claims.values() if claim.node == node for pod in claim.pods}

    def delete_domain(self) -> None:
        if self.domain and self.domain.deleted_at is None:
            self.now += 1
            gone = not self.domain.has_finalizer
            self.domain = None if gone else replace(self.domain, deleted_at=self.now)

    def lose_pod(self, name: str) -> None:
        """Force-deleted, or its node is gone."""
        self.pods.pop(name, None)

    def finish_pods(self, node: str) -> None:
        """They end by themselves."""
        for name, pod in self.pods.items():
            if pod.node == node:
                self.pods[name] = replace(pod, phase=Phase.FINISHED)

    def lose_node(self, node: str, at: float | None = None) -> None:
        """Kubernetes hears nothing of it any more, and says so of its pods, with its time `at`."""
        for name, pod in self.pods.items():
            if pod.node == node and pod.phase is Phase.READY:
                self.pods[name] = replace(pod, phase=Phase.RUNNING, lost_at=at or self.now)

    def find_node(self, node: str) -> None:
        """It is back: its kubelet speaks for its pods again."""
        for name, pod in self.pods.items():
            if pod.node == node:
                self.pods[name] = replace(pod, lost_at=None)

    def step_cluster(self) -> bool:
        """One round of garbage collector, scheduler and kubelets; True when something changed."""
        before = (self.pods, self.daemon_claims)
        owners = {clique.ref.uid for clique in self.cliques.values()}
        pods = {name: pod for name, pod in self.pods.items() if not pod.terminating or pod.lost_at is not None}
        self.pods = {name: self._step_pod(pod, owners) for name, pod in pods.items()}
        claims = {n: c for n, c in self.daemon_claims.items() if not (c.terminating and n not in self.pods)}
        self.daemon_claims = {
            n: c if c.owner_uid in owners else replace(c, terminating=True) for n, c in claims.items()
        }
        return before != (self.pods, self.daemon_claims)

    def _terminate(self, pod: DaemonPod) -> DaemonPod:
        return pod if pod.terminating else replace(pod, terminating=True, grace_s=DAEMON_GRACE_S)

    def _step_pod(self, pod: DaemonPod, owners: set[str]) -> DaemonPod:
        if pod.owner_uid not in owners:
            return self._terminate(pod)
        if pod.lost_at is not None:
            return pod
        if pod.phase is Phase.PENDING and pod.ref.name in self.daemon_claims and not self._is_taken(pod.node):
            self.serial += 1
            return replace(pod, phase=Phase.RUNNING, address=f"10.0.0.{self.serial}")
        if pod.phase is Phase.RUNNING:
            return replace(pod, phase=Phase.READY)
        return pod

    def _is_taken(self, node: str) -> bool:
        """A node has one daemon device, and whose pod has it keeps it until that is gone."""
        pods = [pod for rival in self.rivals for pod in rival.pods.values()]
        return any(pod.node == node and pod.phase is not Phase.PENDING for pod in pods)

    def converge(self, limit: int = 200) -> Plan:
        """Plan, act and let time pass until nothing changes any more; the last plan is empty."""
        for _ in range(limit):
            plan = self.plan()
            for action in plan.actions:
                self.apply(action)
            changed = self.step_cluster()
            if not plan.actions and not changed and not self.gathers:
                if not any(pod.terminating for pod in self.pods.values()):
                    return plan
                assert plan.wake_after_s is not None, "nobody will look at a pod that does not end"
                self.now += plan.wake_after_s
            self.now += 0.2
        raise AssertionError(f"no end in sight; the last plan was {plan}")


def condition(world: World, kind: str) -> tuple[str, str]:
    assert world.domain is not None
    found = find_condition(world.domain.status, kind)
    return found["status"], found["reason"]


def indexes(world: World) -> dict[str, tuple[str, int]]:
    return {
        member.node: (clique.membership.clique_id, member.index)
        for clique in world.cliques.values()
        for member in clique.membership.members
    }


def formed(*nodes: str, **changes: object) -> World:
    world = World(domain=make_domain(**changes))
    for node in nodes:
        world.add_claim(node)
    world.converge()
    return world
