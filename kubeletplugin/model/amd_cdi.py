"""CDI specs of prepared claims of AMD GPUs: `/dev/kfd`, and the DRM nodes of exactly the claimed partitions."""

import json
from collections.abc import Mapping
from typing import Any, Final

from api.errors import HardwareError
from api.names import AMD_CDI_VENDOR, AMD_GPU_DRIVER, CDI_CLAIM_CLASS
from kubeletplugin.model.amd_partitions import AmdInventory, Partition
from kubeletplugin.model.cdi import CDI_VERSION, RECORD_ANNOTATION, DeviceNode, node_edit
from kubeletplugin.model.checkpoint import ClaimRecord, PartitionHolding, PreparedDevice, record_to_json

KFD_PATH: Final = "/dev/kfd"


def build_amd_cdi_spec(
    record: ClaimRecord, inventory: AmdInventory, nodes: Mapping[str, DeviceNode], node_name: str
) -> dict[str, Any]:
    """The spec of one claim; `nodes` are those of `device_paths`, by path.

    Raises HardwareError where a partition or one of its device nodes is not there.
    """
    return {
        "cdiVersion": CDI_VERSION,
        "kind": f"{AMD_CDI_VENDOR}/{CDI_CLAIM_CLASS}",
        "annotations": {RECORD_ANNOTATION: json.dumps(record_to_json(record), separators=(",", ":"))},
        "containerEdits": {
            "env": [f"KUBERNETES_NODE_NAME={node_name}", f"DRA_RESOURCE_DRIVER_NAME={AMD_GPU_DRIVER}"],
            "deviceNodes": [_node(record, KFD_PATH, nodes)],
        },
        "devices": [
            {
                "name": cdi_id.partition("=")[2],
                "containerEdits": {
                    "deviceNodes": [_node(record, path, nodes) for path in _partition_paths(record, device, inventory)]
                },
            }
            for device in record.devices
            for cdi_id in device.cdi_ids
        ],
    }


def device_paths(record: ClaimRecord, inventory: AmdInventory) -> tuple[str, ...]:
    """The device nodes that the spec of this claim needs, as containers see them. Raises HardwareError."""
    partitions = (_partition_paths(record, device, inventory) for device in record.devices)
    return (KFD_PATH, *(path for paths in partitions for path in paths))


def _partition_paths(record: ClaimRecord, device: PreparedDevice, inventory: AmdInventory) -> tuple[str, str]:
    partition = _find_partition(device, inventory)
    if partition is None:
        raise HardwareError(
            f"claim {record.claim}: the partition that device {device.device} stands for is not there; "
            "the GPU is gone or was brought into another mode"
        )
    return f"/dev/dri/card{partition.card}", f"/dev/dri/renderD{partition.render}"


def _find_partition(device: PreparedDevice, inventory: AmdInventory) -> Partition | None:
    holding = device.holding
    gpu = inventory.gpu(holding.gpu_uuid)
    if gpu is None or not isinstance(holding, PartitionHolding):
        return None
    present = (gpu.mode.compute, gpu.mode.memory) if gpu.mode else (None, None)
    if present != (holding.compute_mode, holding.memory_mode):
        return None
    return next((partition for partition in gpu.partitions if partition.slot == holding.slot), None)


def _node(record: ClaimRecord, path: str, nodes: Mapping[str, DeviceNode]) -> dict[str, Any]:
    node = nodes.get(path)
    if node is None:
        raise HardwareError(f"claim {record.claim}: the node has no {path}; is the amdgpu driver loaded?")
    return node_edit(node, "rwm")
