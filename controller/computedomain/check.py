"""What every plan promises, whatever led to it. Checked before a plan is carried out. Pure."""

from collections.abc import Iterator

from api.errors import PartitaError
from controller.computedomain.actions import Create, Delete, DropFinalizer, Plan, Situation, is_anything_left
from controller.computedomain.objects import NODE_ANNOTATION
from controller.computedomain.state import Observation, Settings


class UnsafePlan(PartitaError):
    """A plan breaks one of its own invariants: a bug of ours, and it is not carried out."""

    reason = "UnsafePlan"


def check_plan(plan: Plan, seen: Observation, settings: Settings) -> None:
    """Raise UnsafePlan when a plan would break a promise, whatever the reasons that led to it."""
    for problem in _find_problems(plan, seen, settings):
        raise UnsafePlan(f"ComputeDomain {seen.uid}: {problem}")


def _find_problems(plan: Plan, seen: Observation, settings: Settings) -> Iterator[str]:
    positions = [(member.clique_id, member.index) for member in plan.members.members if member.index >= 0]
    if len(set(positions)) != len(positions):
        yield "two members of a clique have one index"
    made = [action.ref for action in plan.actions if isinstance(action, Create)]
    if len(set(made)) != len(made):
        yield "one object is made twice"
    home = seen.domain.ref.namespace if seen.domain else ""
    for action in plan.actions:
        match action:
            case Create(ref=ref, body=body):
                if (body.get("metadata") or {}).get("annotations", {}).get(NODE_ANNOTATION) in plan.members.occupied:
                    yield f"{ref.kind} {ref} is made on a node that is for another domain"
                if ref.namespace != (home if ref.kind == "ResourceClaimTemplate" else settings.namespace):
                    yield f"{ref.kind} {ref} is made outside its namespace"
                if plan.situation in (Situation.ENDING, Situation.GONE):
                    yield f"{ref.kind} {ref} is made for a domain that ends"
            case Delete(ref=ref):
                if not ref.uid:
                    yield f"{ref.kind} {ref} is deleted without saying which incarnation"
            case DropFinalizer(ref=ref) if ref.kind == "ComputeDomain":
                if is_anything_left(seen) or plan.situation is not Situation.ENDING:
                    yield "the finalizer goes before everything else is gone"
            case _:
                pass
