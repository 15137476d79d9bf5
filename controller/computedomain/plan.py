"""From what is seen of one ComputeDomain to what is to be done about it. Pure, deterministic, O(members).

A plan may be cut after any action: what was done is seen the next time, and the rest is planned again. So nothing here
remembers, and the order of the stages is what keeps every intermediate state harmless:

    finalizer before anything outside the domain's namespace exists; an index is stored before anybody can use it, since
    the same write brings it and the address; claims before pods; peers are told before a daemon stops; everything gone
    before the finalizer goes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from api.ref import Ref
from controller.computedomain.actions import (
    Action,
    AddFinalizer,
    Create,
    Delete,
    DropFinalizer,
    Plan,
    Situation,
    WriteStatus,
    find_situation,
    is_anything_left,
)
from controller.computedomain.binding import plan_bindings
from controller.computedomain.clocks import find_finished_s, find_lost_s, find_overdue_s, plan_clocks
from controller.computedomain.members import plan_members
from controller.computedomain.memberships import plan_memberships
from controller.computedomain.objects import (
    build_daemon_claim,
    build_daemon_pod,
    build_template,
    daemon_name,
)
from controller.computedomain.report import plan_reports
from controller.computedomain.state import (
    ABSENT_AFTER_S,
    FAILED_POD_RETRY_S,
    OVERDUE_S,
    Clique,
    DaemonPod,
    Domain,
    Members,
    Observation,
    Phase,
    Settings,
    Template,
)
from controller.computedomain.status import build_status, find_condition, same_status
from controller.computedomain.waiting import plan_following

Json = dict[str, Any]


def plan_domain(seen: Observation, settings: Settings) -> Plan:
    """Everything to be done now about one domain."""
    members = plan_members(seen, settings)
    plan = _plan(seen, members, settings)
    return replace(plan, held=(*plan.held, *plan_clocks(seen, members)))


def _plan(seen: Observation, members: Members, settings: Settings) -> Plan:
    situation = find_situation(seen, used=bool(members.holders))
    match situation:
        case Situation.GONE:
            return _plan_orphans(seen)
        case Situation.ENDING:
            assert seen.domain is not None
            return _plan_end(seen, seen.domain, members)
        case Situation.LIVING | Situation.DRAINING:
            assert seen.domain is not None
            return _plan_upkeep(seen, seen.domain, members, situation, settings)


def _stages(stages: list[list[Action]]) -> tuple[tuple[Action, ...], ...]:
    return tuple(tuple(stage) for stage in stages if stage)


ORPHAN_S = 3.0
"""How long a ComputeDomain must be missing before what bears its label is deleted."""

# --- removal -----------------------------------------------------------------------------------------------------


def _plan_end(seen: Observation, domain: Domain, members: Members) -> Plan:
    """Nobody uses it any more; what takes its time to go is named in the status."""
    removal = _plan_removal(seen)
    if not is_anything_left(seen):
        return Plan(Situation.ENDING, _stages([*removal, [DropFinalizer(domain.ref)] if domain.has_finalizer else []]))
    status, held, wake = _plan_status(seen, domain, members, busy=any(removal))
    delays = [*_plan_wakes(seen), *([] if wake is None else [wake])]
    return Plan(
        Situation.ENDING,
        _order(seen, removal, status),
        held=tuple(held),
        wake_after_s=min(delays) if delays else None,
        members=members,
    )


def _plan_orphans(seen: Observation) -> Plan:
    """What outlived its ComputeDomain. Caches fill one by one, so it may only be late to be seen: wait a bit."""
    removal = _stages(_plan_removal(seen))
    held_s = seen.held_s.get("orphans", 0.0)
    if removal and held_s < ORPHAN_S:
        return Plan(Situation.GONE, held=("orphans",), wake_after_s=ORPHAN_S - held_s)
    delays = _plan_wakes(seen)
    return Plan(Situation.GONE, removal, wake_after_s=min(delays) if delays else None)


def _plan_removal(seen: Observation) -> list[list[Action]]:
    """Everything that bears the domain's label; what is terminating already is only waited for.

    A ComputeDomainClique owns the pods and claims made for it, so in another namespace (where an earlier
    installation was) deleting it is enough, and needs no rights over pods there.
    """
    templates = [template for template in seen.templates if template.domain_uid == seen.uid]
    claims = [claim.ref for claim in seen.daemon_claims if not claim.terminating]
    cliques = [clique.ref for clique in (*seen.cliques, *seen.strays) if not clique.terminating]
    return [
        _remove_templates(templates),
        _delete_pods(seen, seen.pods),
        _deletes(claims),
        _deletes(cliques),
    ]


def _deletes(refs: list[Ref]) -> list[Action]:
    return [Delete(ref) for ref in sorted(refs, key=lambda ref: (ref.kind, ref.namespace, ref.name))]


def _remove_templates(templates: list[Template]) -> list[Action]:
    """With the finalizer of those that another driver made, whose domain was taken over: nobody else takes it off."""
    held = [template.ref for template in templates if template.terminating and template.has_finalizer]
    drops = [DropFinalizer(ref) for ref in sorted(held, key=lambda ref: (ref.namespace, ref.name))]
    return [*_deletes([template.ref for template in templates if not template.terminating]), *drops]


def _delete_pods(seen: Observation, pods: Iterable[DaemonPod]) -> list[Action]:
    """Daemons that are to go; one that is terminating is only waited for, unless its node has died."""
    actions: list[Action] = []
    for pod in sorted(pods, key=lambda pod: pod.ref.name):
        if not pod.terminating:
            actions.append(Delete(pod.ref))
        elif _overdue_in_s(seen, pod) <= 0:
            actions.append(Delete(pod.ref, at_once=True))
    return actions


def _overdue_in_s(seen: Observation, pod: DaemonPod) -> float:
    forced = seen.domain is not None and seen.domain.deleted_at is not None and seen.domain.force
    return (0.0 if forced else OVERDUE_S) - find_overdue_s(seen, pod)


# --- upkeep ------------------------------------------------------------------------------------------------------


def _plan_upkeep(seen: Observation, domain: Domain, members: Members, situation: Situation, settings: Settings) -> Plan:
    inhabited = {member.clique_id for member in members.members if member.index >= 0}
    current = {clique.ref.name: clique for clique in seen.cliques}
    memberships, held, wakes = plan_memberships(seen, domain, members, current, settings)
    alive = {
        clique.membership.clique_id: clique
        for clique in current.values()
        if not clique.terminating and clique.membership.clique_id in inhabited
    }
    claims, pods = _plan_daemons(seen, domain, members, alive, settings)
    surplus, retry_s = _plan_surplus(seen, members, alive)
    structure: list[list[Action]] = [
        [AddFinalizer(domain.ref)] if situation is Situation.LIVING and not domain.has_finalizer else [],
        _plan_template(seen, domain, situation),
        memberships,
        claims,
        pods,
        *surplus,
        list(plan_bindings(seen, domain, members)),
    ]
    status, status_held, status_wake = _plan_status(seen, domain, members, busy=any(structure))
    reports, report_wake = plan_reports(seen, domain, members, status.status if status else None)
    follow_pods, follow_wake = plan_following(seen, members)
    wakes += _plan_wakes(seen)
    delays = [d for d in (*wakes, retry_s, status_wake, report_wake, follow_wake) if d is not None]
    return Plan(
        situation,
        _order(seen, structure, status),
        reports,
        (*held, *status_held),
        min(delays) if delays else None,
        members,
        follow_pods,
    )


def _order(
    seen: Observation, structure: list[list[Action]], status: WriteStatus | None
) -> tuple[tuple[Action, ...], ...]:
    """What was refused is said first: the stages after the one that is refused are not reached."""
    told: list[list[Action]] = [[status] if status else []]
    return _stages([*told, *structure] if seen.failures else [*structure, *told])


def _plan_wakes(seen: Observation) -> list[float]:
    """In how many seconds something is due that no change will tell of."""
    lost = [pod for pod in seen.pods if pod.lost_at is not None and not pod.terminating]
    losses = [ABSENT_AFTER_S - find_lost_s(seen, pod) for pod in lost]
    overdue = [_overdue_in_s(seen, pod) for pod in seen.pods if pod.terminating]
    return [due_s for due_s in (*losses, *overdue) if due_s > 0]


def _plan_template(seen: Observation, domain: Domain, situation: Situation) -> list[Action]:
    """A draining domain's template goes first: no new claim can be made from it."""
    own = [template for template in seen.templates if template.domain_uid == seen.uid]
    if situation is Situation.DRAINING:
        return _remove_templates(own)
    name = (domain.ref.namespace, domain.template_name)
    if any((template.ref.namespace, template.ref.name) == name for template in seen.templates):
        return []
    body = build_template(domain)
    return [Create(Ref("ResourceClaimTemplate", *name), body)]


def _plan_daemons(
    seen: Observation, domain: Domain, members: Members, alive: Mapping[str, Clique], settings: Settings
) -> tuple[list[Action], list[Action]]:
    """Claims and pods that are missing. A name that is still taken by what is going away is waited for."""
    stored = {claim.ref.name: claim for claim in seen.daemon_claims}
    taken = {pod.ref.name for pod in seen.pods}
    claims: list[Action] = []
    pods: list[Action] = []
    for member in members.members:
        clique = alive.get(member.clique_id)
        if clique is None or member.index < 0 or member.node in members.occupied:
            continue
        name = daemon_name(domain, member.node)
        claim = stored.get(name)
        if claim is None and member.node in seen.taken:
            # A pod that came now would find the node taken, and the scheduler does not always look again when an
            # allocation is given up that it had not stored yet.
            continue
        if claim is None:
            body = build_daemon_claim(domain, member, clique, settings)
            claims.append(Create(Ref("ResourceClaim", settings.namespace, name), body))
        elif claim.terminating or claim.owner_uid != clique.ref.uid:
            continue
        if name not in taken:
            body = build_daemon_pod(domain, member, clique, settings)
            pods.append(Create(Ref("Pod", settings.namespace, name), body))
    return claims, pods


def _plan_surplus(
    seen: Observation, members: Members, alive: Mapping[str, Clique]
) -> tuple[list[list[Action]], float | None]:
    """What must go: daemons that ended, or whose node left, moved or is for another domain; cliques that are empty."""
    served = [m for m in members.members if m.index >= 0 and m.node not in members.occupied]
    clique_of = {member.node: member.clique_id for member in served}
    owner_of = {node: alive[clique].ref.uid for node, clique in clique_of.items() if clique in alive}
    pods: list[DaemonPod] = []
    retry_s: list[float] = []
    for pod in seen.pods:
        has_place = pod.clique_id == clique_of.get(pod.node) and not _is_stale(pod, owner_of)
        if pod.terminating or not has_place:
            pods.append(pod)
        elif pod.phase is Phase.FINISHED:
            left_s = FAILED_POD_RETRY_S - find_finished_s(seen, pod)
            if left_s <= 0:
                pods.append(pod)
            else:
                retry_s.append(left_s)
    claims = [
        claim.ref
        for claim in seen.daemon_claims
        if not claim.terminating and (claim.node not in clique_of or _is_stale(claim, owner_of))
    ]
    empty = [clique for clique in seen.cliques if clique.membership.clique_id not in alive]
    cliques = [clique.ref for clique in (*empty, *seen.strays) if not clique.terminating]
    return [_delete_pods(seen, pods), _deletes(claims), _deletes(cliques)], min(retry_s) if retry_s else None


def _is_stale(made: Any, owner_of: Mapping[str, str]) -> bool:
    """Made for an incarnation of the ComputeDomainClique that is gone."""
    return made.node in owner_of and made.owner_uid != owner_of[made.node]


# --- status ------------------------------------------------------------------------------------------------------

FIRST_STATUS_S = 0.3
"""A new domain's pods usually come with it: wait this long before saying that there are none."""
GATHER_STATUS_S = 3.0
"""How long progress that does not change Ready may wait; an end that takes no longer than this needs no words."""


def _plan_status(
    seen: Observation, domain: Domain, members: Members, *, busy: bool
) -> tuple[WriteStatus | None, list[str], float | None]:
    """The status, when it says something new. While there is other work it waits: the next plan knows more."""
    wanted = build_status(seen, members, domain)
    if same_status(domain.status, wanted):
        return None, [], None
    if busy and not seen.failures:
        return None, ["status"], None
    first = not domain.status.get("conditions")
    flips = find_condition(domain.status, "Ready").get("status") != find_condition(wanted, "Ready")["status"]
    ends = domain.deleted_at is not None and not members.holders
    window = FIRST_STATUS_S if first else 0.0 if flips and not ends else GATHER_STATUS_S
    held_s = seen.held_s.get("status", 0.0)
    if held_s < window:
        return None, ["status"], window - held_s
    return WriteStatus(domain.ref, wanted), [], None
