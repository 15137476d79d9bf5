"""What a node has, as its KaiwoNode shows it, from what it publishes. Pure."""

from collections.abc import Iterable
from itertools import groupby
from typing import Final

from api.kaiwo import Amount, GpuResources, NodeResources
from api.names import AMD_GPU_CLASS
from api.quantity import canonical_quantity, format_quantity, parse_quantity
from controller.nodepartitioning.state import Device, Node

_NOMINAL_PERCENT: Final = 90  # Kaiwo's


def group_by_gpu(devices: Iterable[Device]) -> tuple[tuple[Device, ...], ...]:
    """In order of PCI address."""
    return tuple(tuple(group) for _, group in groupby(sorted(devices), key=lambda device: device.gpu))


def build_resources(node: Node, published: Iterable[Device]) -> NodeResources:
    gpus = group_by_gpu(published)
    return NodeResources(
        cpu=Amount(actual=node.cpu, nominal=_share_of_cpu(node.cpu)),
        memory=Amount(
            actual=node.memory, nominal=format_quantity(parse_quantity(node.memory) * _NOMINAL_PERCENT // 100)
        ),
        gpus=_build_gpus(gpus) if gpus else GpuResources(),
    )


def _share_of_cpu(cpu: str) -> str:
    milli = parse_quantity(cpu) * 1000 if not cpu.endswith("m") else parse_quantity(cpu.removesuffix("m"))
    return canonical_quantity(f"{milli * _NOMINAL_PERCENT // 100}m")


def _build_gpus(gpus: tuple[tuple[Device, ...], ...]) -> GpuResources:
    """Where a GPU shows several modes, claims choose: it counts as what it is, a whole one."""
    physical_bytes = min(_whole_bytes(devices) for devices in gpus)
    is_fixed = all(len({device.profile for device in devices}) == 1 for devices in gpus)
    parts = [device for devices in gpus for device in devices] if is_fixed else []
    logical = sum(device.partitions for device in parts) or len(gpus)
    return GpuResources(
        vendor="AMD",
        resource_name=AMD_GPU_CLASS,
        model=gpus[0][0].product,
        logical_count=logical,
        physical_count=len(gpus),
        physical_vram_per_gpu=format_quantity(physical_bytes),
        logical_vram_per_gpu=format_quantity(min((part.memory_bytes for part in parts), default=physical_bytes)),
        is_partitioned=logical > len(gpus),
    )


def _whole_bytes(devices: tuple[Device, ...]) -> int:
    """The mode that loses least to rounding is nearest to the GPU's own memory."""
    modes: dict[str, int] = {}
    for device in devices:
        modes[device.profile] = modes.get(device.profile, 0) + device.memory_bytes * device.partitions
    return max(modes.values())
