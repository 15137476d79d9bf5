"""What this node has prepared, as values, and its journal: one checkpoint per driver.

A claim has two durable states: STARTED before hardware changes, COMPLETED before the reply. The journal is a text file
that is only appended to: a header line, then one line per change, each `<format> <crc32 of the JSON, 8 hex> <JSON>`.
A removal is a tombstone line. Compaction is `encode_checkpoint`, written to a new file that replaces the old.
"""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, assert_never

from api.errors import NewerState, StateUnreadable
from kubeletplugin.model.inventory import Placement

FORMAT: Final = 1
"""Of the journal's lines. A program reads its own format and older ones."""
_ENCODER: Final = json.JSONEncoder(separators=(",", ":"))  # json.dumps would make one at every call


class ClaimState(StrEnum):
    STARTED = "started"
    """Hardware may have been changed, or may be about to be."""
    COMPLETED = "completed"
    """Everything is in place; the reply may have been given."""


@dataclass(frozen=True, slots=True)
class GpuHolding:
    """A full GPU."""

    gpu_uuid: str
    time_slice: int | None = None
    """The time-slice that the claim asked for (nvml: 0 default .. 3 long); None leaves it alone."""


@dataclass(frozen=True, slots=True)
class MigHolding:
    """A MIG instance, by where it lies. The ids and the UUID are those of the instance that was there at completion."""

    gpu_uuid: str
    profile_id: int
    placement: Placement
    owned: bool
    """True where we create and delete the instance; False where it is an admin's, or another claim's (admin access)."""
    gpu_instance_id: int | None = None
    compute_instance_id: int | None = None
    uuid: str | None = None


@dataclass(frozen=True, slots=True)
class PartitionHolding:
    """One partition of an AMD GPU, or all of a GPU that is one partition or cannot be partitioned."""

    gpu_uuid: str
    """The GPU's PCI address: AMD's own ids are per partition, and change with the driver."""
    compute_mode: str | None
    """`CPX`; None on a GPU that cannot be partitioned."""
    memory_mode: str | None
    """`NPS4`"""
    slot: int
    """Number of the partition on its GPU, from 0."""


Holding = GpuHolding | MigHolding | PartitionHolding


@dataclass(frozen=True, slots=True)
class PreparedDevice:
    """One device of a claim and what stands for it on the hardware."""

    request: str
    """Main request name, without sub-request."""
    pool: str
    device: str
    holding: Holding
    cdi_ids: tuple[str, ...] = ()
    admin_access: bool = False
    share_id: str | None = None


@dataclass(frozen=True, slots=True)
class ClaimRecord:
    """One claim in the checkpoint."""

    driver: str
    uid: str
    namespace: str
    name: str
    state: ClaimState
    boot_id: str
    """Of the boot in which the hardware was last changed for this claim; MIG instances do not survive a reboot."""
    devices: tuple[PreparedDevice, ...]

    @property
    def claim(self) -> str:
        """`<namespace>/<name>`, for messages."""
        return f"{self.namespace}/{self.name}"

    @property
    def is_complete(self) -> bool:
        return self.state is ClaimState.COMPLETED

    @property
    def device_names(self) -> tuple[str, ...]:
        return tuple(device.device for device in self.devices)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """All records of one driver, by claim UID. Changing it gives a new one."""

    records: Mapping[str, ClaimRecord] = field(default_factory=dict)
    holders: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """GPU UUID to the UIDs of the claims that hold something on it, without admin access. Derived from `records`."""

    def get(self, uid: str) -> ClaimRecord | None:
        return self.records.get(uid)

    def with_record(self, record: ClaimRecord) -> "Checkpoint":
        base = self.without(record.uid)
        holders = dict(base.holders)
        for gpu_uuid in dict.fromkeys(d.holding.gpu_uuid for d in record.devices if not d.admin_access):
            holders[gpu_uuid] = (*holders.get(gpu_uuid, ()), record.uid)
        return Checkpoint({**base.records, record.uid: record}, holders)

    def without(self, uid: str) -> "Checkpoint":
        if uid not in self.records:
            return self
        records = {key: record for key, record in self.records.items() if key != uid}
        holders = dict(self.holders)
        for gpu_uuid in {d.holding.gpu_uuid for d in self.records[uid].devices if not d.admin_access}:
            left = tuple(holder for holder in holders[gpu_uuid] if holder != uid)
            if left:
                holders[gpu_uuid] = left
            else:
                del holders[gpu_uuid]
        return Checkpoint(records, holders)

    def on_gpu(self, gpu_uuid: str) -> tuple[tuple[ClaimRecord, Holding], ...]:
        """What claims hold on one GPU, admin access left out."""
        return tuple(
            (self.records[uid], device.holding)
            for uid in self.holders.get(gpu_uuid, ())
            for device in self.records[uid].devices
            if device.holding.gpu_uuid == gpu_uuid and not device.admin_access
        )


def count_prepared(checkpoint: Checkpoint) -> dict[str, int]:
    """Devices of NVIDIA GPUs that claims hold, by type."""
    counts = {"gpu": 0, "mig": 0}
    for record in checkpoint.records.values():
        for device in record.devices:
            counts["mig" if isinstance(device.holding, MigHolding) else "gpu"] += 1
    return counts


@dataclass(frozen=True, slots=True)
class Journal:
    """A journal as read."""

    checkpoint: Checkpoint
    valid_bytes: int
    """Length of the readable prefix. Where the file is longer, its last append was torn: truncate it to this length."""
    lines: int
    """Lines read; where it is far above the number of records, compact."""


def encode_header(driver: str) -> bytes:
    """First line of every journal, so that an emptied file cannot pass for an empty checkpoint."""
    return _encode_line({"journal": driver})


def encode_record(record: ClaimRecord) -> bytes:
    """The line that sets a record."""
    return _encode_line({"set": record_to_json(record)})


def encode_removal(uid: str) -> bytes:
    """The line that removes a record."""
    return _encode_line({"remove": uid})


def encode_checkpoint(driver: str, checkpoint: Checkpoint) -> bytes:
    """A whole journal with nothing superfluous."""
    return b"".join([encode_header(driver), *(encode_record(record) for record in checkpoint.records.values())])


def decode_journal(driver: str, data: bytes) -> Journal:
    """Read a journal. Raises StateUnreadable, which names the line and byte, for anything but a torn last append."""
    end = data.rfind(b"\n") + 1
    checkpoint, offset, number = Checkpoint(), 0, 0
    while offset < end:
        number += 1
        stop = data.index(b"\n", offset)
        entry = _decode_line(data[offset:stop], f"line {number} at byte {offset}")
        checkpoint = _apply_entry(checkpoint, entry, driver, number, offset)
        offset = stop + 1
    if number == 0:
        raise StateUnreadable(f"the checkpoint of {driver} has no header line: it was emptied or is not a checkpoint")
    return Journal(checkpoint, end, number)


def _apply_entry(checkpoint: Checkpoint, entry: dict[str, Any], driver: str, number: int, offset: int) -> Checkpoint:
    if number == 1:
        if entry.get("journal") != driver:
            raise StateUnreadable(f"the checkpoint's header names {entry.get('journal')!r}; expected {driver!r}")
        return checkpoint
    try:
        if "set" in entry:
            return checkpoint.with_record(record_from_json(entry["set"]))
        return checkpoint.without(entry["remove"])
    except (KeyError, TypeError, ValueError) as error:
        raise StateUnreadable(
            f"line {number} at byte {offset}: not a record of format {FORMAT} ({type(error).__name__}: {error})"
        ) from error


def _encode_line(entry: dict[str, Any]) -> bytes:
    body = _ENCODER.encode(entry).encode()
    return b"%d %08x %b\n" % (FORMAT, zlib.crc32(body), body)


def _decode_line(line: bytes, where: str) -> dict[str, Any]:
    version, _, rest = line.partition(b" ")
    crc, _, body = rest.partition(b" ")
    if version.isdigit() and int(version) > FORMAT:
        raise NewerState(
            f"{where}: format {int(version)} was written by a newer version of this program, which reads formats up to "
            f"{FORMAT}; install the newer version again"
        )
    if version != b"%d" % FORMAT or crc != b"%08x" % zlib.crc32(body):
        raise StateUnreadable(f"{where}: the checksum does not match, the line was altered")
    try:
        entry = json.loads(body)
    except ValueError as error:
        raise StateUnreadable(f"{where}: not JSON ({error})") from error
    if not isinstance(entry, dict):
        raise StateUnreadable(f"{where}: not an object")
    return entry


def record_to_json(record: ClaimRecord) -> dict[str, Any]:
    return {
        "driver": record.driver,
        "uid": record.uid,
        "namespace": record.namespace,
        "name": record.name,
        "state": record.state.value,
        "bootID": record.boot_id,
        "devices": [_device_to_json(device) for device in record.devices],
    }


def record_from_json(raw: dict[str, Any]) -> ClaimRecord:
    """Raises KeyError, TypeError or ValueError."""
    return ClaimRecord(
        driver=raw["driver"],
        uid=raw["uid"],
        namespace=raw["namespace"],
        name=raw["name"],
        state=ClaimState(raw["state"]),
        boot_id=raw["bootID"],
        devices=tuple(_device_from_json(device) for device in raw["devices"]),
    )


def _device_to_json(device: PreparedDevice) -> dict[str, Any]:
    return {
        "request": device.request,
        "pool": device.pool,
        "device": device.device,
        "cdi": list(device.cdi_ids),
        "admin": device.admin_access,
        "share": device.share_id,
        "holding": _holding_to_json(device.holding),
    }


def _device_from_json(raw: dict[str, Any]) -> PreparedDevice:
    return PreparedDevice(
        request=raw["request"],
        pool=raw["pool"],
        device=raw["device"],
        holding=_holding_from_json(raw["holding"]),
        cdi_ids=tuple(raw["cdi"]),
        admin_access=raw["admin"],
        share_id=raw["share"],
    )


def _holding_to_json(holding: Holding) -> dict[str, Any]:
    match holding:
        case GpuHolding():
            return {"kind": "gpu", "gpu": holding.gpu_uuid, "timeSlice": holding.time_slice}
        case MigHolding():
            return {
                "kind": "mig",
                "gpu": holding.gpu_uuid,
                "profile": holding.profile_id,
                "start": holding.placement.start,
                "size": holding.placement.size,
                "owned": holding.owned,
                "gi": holding.gpu_instance_id,
                "ci": holding.compute_instance_id,
                "uuid": holding.uuid,
            }
        case PartitionHolding():
            return {
                "kind": "partition",
                "gpu": holding.gpu_uuid,
                "compute": holding.compute_mode,
                "memory": holding.memory_mode,
                "slot": holding.slot,
            }
    assert_never(holding)


def _holding_from_json(raw: dict[str, Any]) -> Holding:
    match raw["kind"]:
        case "gpu":
            return GpuHolding(raw["gpu"], raw["timeSlice"])
        case "mig":
            return MigHolding(
                gpu_uuid=raw["gpu"],
                profile_id=raw["profile"],
                placement=Placement(raw["start"], raw["size"]),
                owned=raw["owned"],
                gpu_instance_id=raw["gi"],
                compute_instance_id=raw["ci"],
                uuid=raw["uuid"],
            )
        case "partition":
            return PartitionHolding(raw["gpu"], raw["compute"], raw["memory"], raw["slot"])
        case kind:
            raise ValueError(f"unknown holding {kind!r}")
