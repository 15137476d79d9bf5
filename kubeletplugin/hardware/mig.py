"""MIG on one GPU through NVML: reading, making and removing instances."""

from collections.abc import Mapping, Sequence
from ctypes import byref, c_uint
from dataclasses import dataclass, field
from typing import Any

import pynvml

from kubeletplugin.hardware.backend import PlacementOccupied
from kubeletplugin.model.inventory import MigInstance, MigProfile, Placement


@dataclass(frozen=True, slots=True)
class ComputeInstance:
    """A compute instance, as its MIG device handle tells. `whole` where it spans its GPU instance."""

    instance_id: int
    uuid: str
    whole: bool


@dataclass(frozen=True, slots=True)
class _GpuInstance:
    handle: Any
    instance_id: int
    profile_id: int
    placement: Placement
    compute: tuple[ComputeInstance, ...] = field(default=())


class MigReader:
    """What is on the GPU now; nothing is remembered between calls. Raises pynvml.NVMLError, PlacementOccupied."""

    def __init__(
        self, device: Any, uuid: str, profiles: Sequence[MigProfile], compute_slices: Mapping[int, int]
    ) -> None:
        self._device = device
        self._uuid = uuid
        self._profiles = profiles
        self._compute_slices = compute_slices

    def read_instances(self) -> tuple[MigInstance, ...]:
        """All GPU instances, ascending by start; none while MIG is off."""
        found = [gi for profile in self._profiles for gi in self._list(profile)]
        compute = self._read_compute() if found else {}
        instances = (_describe(gi, compute.get(gi.instance_id, ())) for gi in found)
        return tuple(sorted(instances, key=lambda i: (i.placement.start, i.gpu_instance_id)))

    def create(self, profile_id: int, placement: Placement) -> MigInstance:
        """The instance at that placement with the one compute instance that spans it, made as far as it is missing."""
        found = self._find(profile_id, placement)
        if found is None:
            handle = self._create_gpu_instance(profile_id, placement)
            info = pynvml.nvmlGpuInstanceGetInfo(handle)
            found = _GpuInstance(handle, info.id, profile_id, placement)
            compute: tuple[ComputeInstance, ...] = ()
        else:
            compute = self._read_compute().get(found.instance_id, ())
        if compute and not (len(compute) == 1 and compute[0].whole):
            raise PlacementOccupied(
                f"GPU {self._uuid}: GPU instance {found.instance_id} at {placement.start}:{placement.size} "
                "holds compute instances that are not ours"
            )
        return _describe(found, compute or (self._create_whole_compute_instance(found.handle, profile_id),))

    def delete(self, profile_id: int, placement: Placement) -> None:
        """Remove the instance at that placement, its compute instances first. Absent is success."""
        found = self._find(profile_id, placement)
        if found is None:
            return
        for compute in self._read_compute().get(found.instance_id, ()):
            handle = pynvml.nvmlGpuInstanceGetComputeInstanceById(found.handle, compute.instance_id)
            pynvml.nvmlComputeInstanceDestroy(handle)
        pynvml.nvmlGpuInstanceDestroy(found.handle)

    def _create_gpu_instance(self, profile_id: int, placement: Placement) -> Any:
        where = pynvml.c_nvmlGpuInstancePlacement_t(placement.start, placement.size)
        try:
            return pynvml.nvmlDeviceCreateGpuInstanceWithPlacement(self._device, profile_id, byref(where))
        except (pynvml.NVMLError_InsufficientResources, pynvml.NVMLError_InvalidArgument) as error:
            taken = [i for i in self.read_instances() if i.placement.overlaps(placement)]
            holders = ", ".join(
                f"GPU instance {i.gpu_instance_id} at {i.placement.start}:{i.placement.size}" for i in taken
            )
            raise PlacementOccupied(
                f"GPU {self._uuid}: profile {profile_id} does not fit at {placement.start}:{placement.size}"
                + (f": there is {holders}" if holders else f" ({error})")
            ) from error

    def _create_whole_compute_instance(self, gpu_instance: Any, profile_id: int) -> ComputeInstance:
        profile = self._whole_compute_profile(gpu_instance, profile_id)
        info = pynvml.nvmlComputeInstanceGetInfo_v2(pynvml.nvmlGpuInstanceCreateComputeInstance(gpu_instance, profile))
        return ComputeInstance(info.id, str(pynvml.nvmlDeviceGetUUID(info.device)), whole=True)

    def _find(self, profile_id: int, placement: Placement) -> _GpuInstance | None:
        profile = next((p for p in self._profiles if p.profile_id == profile_id), None)
        instances = self._list(profile) if profile else []
        return next((gi for gi in instances if gi.placement == placement), None)

    def _list(self, profile: MigProfile) -> list[_GpuInstance]:
        size = max(profile.max_instances, len(profile.placements))
        array = (pynvml.c_nvmlGpuInstance_t * size)()
        count = c_uint(size)
        try:
            pynvml.nvmlDeviceGetGpuInstances(self._device, profile.profile_id, array, byref(count))
        except pynvml.NVMLError_NotSupported:
            return []  # MIG is off; newer drivers then list none
        found = []
        for handle in array[: count.value]:
            info = pynvml.nvmlGpuInstanceGetInfo(handle)
            placement = Placement(info.placement.start, info.placement.size)
            found.append(_GpuInstance(handle, info.id, info.profileId, placement))
        return found

    def _read_compute(self) -> dict[int, tuple[ComputeInstance, ...]]:
        """By GPU instance id. Every compute instance is a MIG device; indices have gaps."""
        found: dict[int, tuple[ComputeInstance, ...]] = {}
        for index in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(self._device)):
            try:
                handle = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(self._device, index)
            except pynvml.NVMLError_NotFound:
                continue
            attributes = pynvml.nvmlDeviceGetAttributes(handle)
            compute = ComputeInstance(
                instance_id=pynvml.nvmlDeviceGetComputeInstanceId(handle),
                uuid=str(pynvml.nvmlDeviceGetUUID(handle)),
                whole=attributes.computeInstanceSliceCount == attributes.gpuInstanceSliceCount,
            )
            gi = pynvml.nvmlDeviceGetGpuInstanceId(handle)
            found[gi] = (*found.get(gi, ()), compute)
        return found

    def _whole_compute_profile(self, gpu_instance: Any, profile_id: int) -> int:
        """Id of the compute instance profile that takes all slices of a GPU instance of this profile."""
        wanted = self._compute_slices[profile_id]
        for index in range(pynvml.NVML_COMPUTE_INSTANCE_PROFILE_COUNT):
            try:
                info = pynvml.nvmlGpuInstanceGetComputeInstanceProfileInfo(
                    gpu_instance, index, pynvml.NVML_COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED
                )
            except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_InvalidArgument):
                continue
            if info.sliceCount == wanted and info.instanceCount == 1:
                return int(info.id)
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)


def _describe(gi: _GpuInstance, compute: tuple[ComputeInstance, ...]) -> MigInstance:
    first = compute[0] if compute else None
    return MigInstance(
        gpu_instance_id=gi.instance_id,
        profile_id=gi.profile_id,
        placement=gi.placement,
        compute_instance_id=first.instance_id if first else None,
        uuid=first.uuid if first else None,
        foreign=len(compute) > 1 or (first is not None and not first.whole),
    )
