"""The vocabulary of plans: what can be done to the cluster, and in which situations a domain can be. Pure."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from api.ref import Ref
from controller.computedomain.report import Report
from controller.computedomain.state import Binding, Members, Observation

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class AddFinalizer:
    ref: Ref


@dataclass(frozen=True, slots=True)
class DropFinalizer:
    ref: Ref


@dataclass(frozen=True, slots=True)
class Create:
    """Make an object whose name is fixed: that it exists already is success."""

    ref: Ref
    body: Json


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete this incarnation: that it is gone, or another one by now, is success."""

    ref: Ref
    at_once: bool = False
    """Do not wait for a kubelet: it has had its time."""


@dataclass(frozen=True, slots=True)
class WriteMembership:
    """Replace the changing fields of a ComputeDomainClique, unless it is newer than what was seen."""

    ref: Ref
    resource_version: str
    fields: Json


@dataclass(frozen=True, slots=True)
class WriteStatus:
    ref: Ref
    status: Json


@dataclass(frozen=True, slots=True)
class WriteBinding:
    """Set the conditions of one allocated channel, in the status of its claim."""

    ref: Ref
    binding: Binding
    conditions: tuple[Json, ...]


Action = AddFinalizer | DropFinalizer | Create | Delete | WriteMembership | WriteStatus | WriteBinding


class Situation(Enum):
    """What a domain is to us."""

    LIVING = "living"
    DRAINING = "draining"
    """Deleted, but claims still use it."""
    ENDING = "ending"
    """Deleted, and nobody uses it any more; or forced."""
    GONE = "gone"
    """The ComputeDomain is gone; what is left of it must go too."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Stages in order; the actions of one stage do not depend on each other."""

    situation: Situation
    stages: tuple[tuple[Action, ...], ...] = ()
    reports: tuple[Report, ...] = ()
    """Events for people; losing one harms nothing."""
    held: tuple[str, ...] = ()
    """What has to wait, by name; `Observation.held_s` says for how long it has been in every plan."""
    wake_after_s: float | None = None
    """Look again after this time, even if nothing changes."""
    members: Members = field(default_factory=Members)
    follow_pods: bool = False
    """Pods have been waiting for a while: find out which of them are being deleted (`Observation.leaving`)."""

    @property
    def actions(self) -> tuple[Action, ...]:
        return tuple(action for stage in self.stages for action in stage)


def find_situation(seen: Observation, used: bool) -> Situation:
    """`used`: an accepted claim is reserved for a pod. A domain that is not deleted lives, whoever uses it."""
    domain = seen.domain
    if domain is None:
        return Situation.GONE
    if domain.deleted_at is None:
        return Situation.LIVING
    return Situation.DRAINING if used and not domain.force else Situation.ENDING


def is_anything_left(seen: Observation) -> bool:
    """Something that was made for the domain still exists, if only until its own end is done.

    Not `strays`: whoever has put one of those into their own namespace could hold up the domain of another.
    """
    templates = [template for template in seen.templates if template.domain_uid == seen.uid]
    return bool(templates or seen.pods or seen.daemon_claims or seen.cliques)
