"""Preparing and unpreparing claims of NVIDIA GPUs, decided on values."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from kubeletplugin.model.checkpoint import Checkpoint, ClaimRecord, ClaimState
from kubeletplugin.model.claims import ClaimRequest
from kubeletplugin.model.inventory import Inventory, MigInstance
from kubeletplugin.model.steps import HardwareStep


@dataclass(frozen=True, slots=True)
class PreparePlan:
    """Write `record`, do `steps` in order, then write `complete(plan, results)`.

    Where `done`, there is nothing to do and nothing to write: `record` is the answer.
    """

    record: ClaimRecord
    steps: tuple[HardwareStep, ...] = ()

    @property
    def done(self) -> bool:
        return self.record.state is ClaimState.COMPLETED


@dataclass(frozen=True, slots=True)
class UndoPlan:
    """Do `steps` in order, remove the claim's CDI file, then remove the record."""

    record: ClaimRecord
    steps: tuple[HardwareStep, ...]


@dataclass(frozen=True, slots=True)
class RecoveryPlan:
    """What a starting plugin does before it serves: `undo`, then `redo`, then `keep`."""

    undo: tuple[UndoPlan, ...] = ()
    redo: tuple[PreparePlan, ...] = ()
    """Claims whose hardware a reboot took; carried out like any prepare, CDI file included."""
    keep: tuple[ClaimRecord, ...] = ()
    """Claims in order; their CDI files are written again where they are missing."""
    failed: tuple[tuple[ClaimRecord, str], ...] = ()
    """Claims that cannot be made again, each with the reason; their records stay."""


def plan_prepare(request: ClaimRequest, inventory: Inventory, checkpoint: Checkpoint, boot_id: str) -> PreparePlan:
    """Raises ClaimError (nobody but a person can help), Busy (another claim holds what is asked for)."""
    record = checkpoint.get(request.uid)
    if record is not None:
        return PreparePlan(record)
    return PreparePlan(
        ClaimRecord(
            request.driver, request.uid, request.namespace, request.name, ClaimState.STARTED, boot_id, devices=()
        )
    )


def complete(plan: PreparePlan, results: Sequence[MigInstance | None]) -> ClaimRecord:
    """The record to write once all steps are done; `results` are what the steps yielded, one each."""
    return plan.record


def plan_unprepare(record: ClaimRecord, inventory: Inventory, checkpoint: Checkpoint) -> tuple[HardwareStep, ...]:
    """The steps that give back what a claim held; afterwards remove its CDI file, then its record.

    Steps of several plans for one GPU must not interleave.
    """
    return ()


def plan_recovery(checkpoint: Checkpoint, inventory: Inventory, boot_id: str) -> RecoveryPlan:
    """What a starting plugin finishes or undoes."""
    return RecoveryPlan(keep=tuple(checkpoint.records.values()))


def stale_claims(checkpoint: Checkpoint, alive: Collection[str]) -> tuple[ClaimRecord, ...]:
    """Records whose claim is gone from the API server, to be unprepared. `alive`: UIDs of the claims that exist."""
    return tuple(record for uid, record in checkpoint.records.items() if uid not in alive)
