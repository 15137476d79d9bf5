"""Whose processes on a claim's devices keep a claim that is gone from the API server."""

import re
from collections.abc import Collection, Mapping
from typing import Final

from kubeletplugin.model.checkpoint import ClaimRecord, ClaimState, MigHolding

_POD: Final = re.compile(r"[/-]pod[0-9a-f]{8}")
"""In /proc/PID/cgroup: `kubepods-pod<uid>.slice` with kubelet's systemd driver, `kubepods/pod<uid>` with cgroupfs."""


def list_held(record: ClaimRecord) -> dict[str, str]:
    """Device name to the UUID of the GPU or MIG device whose processes can only be the claim's.

    No container has been told of a claim that was never completed, and what admin access shows is somebody else's.
    """
    if record.state is ClaimState.STARTED:
        return {}
    held: dict[str, str] = {}
    for device in record.devices:
        uuid = device.holding.uuid if isinstance(device.holding, MigHolding) else device.holding.gpu_uuid
        if uuid is not None and not device.admin_access:
            held[device.device] = uuid
    return held


def is_of_a_pod(cgroup: str) -> bool:
    """`cgroup`: a process's /proc/PID/cgroup. A display server of the node, say, is no claim's."""
    return _POD.search(cgroup) is not None


def is_of_pods(cgroup: str, pods: Collection[str]) -> bool:
    """Whether a process is of one of these pods, by their UIDs. systemd's slices have `_` for the `-` of a UID."""
    return any(f"pod{form}" in cgroup for uid in pods for form in (uid, uid.replace("-", "_")))


def describe_occupation(record: ClaimRecord, occupants: Mapping[str, tuple[int, ...]]) -> str:
    """`occupants`: device name to process ids."""
    held = list_held(record)
    places = "; ".join(
        f"{device} ({held[device]}) by {', '.join(map(str, pids))}" for device, pids in sorted(occupants.items())
    )
    return f"claim {record.claim} is gone, but processes still use what it held: {places}; it is kept until they end"
