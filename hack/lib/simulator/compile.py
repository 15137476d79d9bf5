"""From a node profile to the binary state that the library maps."""

import ctypes
import uuid
from typing import Any

from simulator.layout import ALWAYS, LAYOUT, MAGIC, MAX_GPUS, Fixed, Gpu, Profile, State
from simulator.models import Group, parse_spec, read_model

DRIVER_VERSION = "580.105.08"
CUDA_VERSION = 13000
NODES_PER_RACK = 18  # NVL72: 18 compute trays of 4 GPUs
FABRIC_COMPLETED, FABRIC_HEALTHY = 3, 1
HEALTH_MASK_GOOD = 0x1AA
"""No degraded bandwidth, route recovery, unhealthy route, access-timeout recovery (2 each), configuration right (1)."""

ARCHITECTURES = {"ampere": 7, "ada": 8, "hopper": 9, "blackwell": 10}  # nvml.h NVML_DEVICE_ARCH_*
BRANDS = {"tesla": 2, "nvidia-rtx": 13, "nvidia": 14}  # nvml.h NVML_BRAND_*
ADDRESSING = {"none": 0, "HMM": 1, "ATS": 2}  # nvml.h NVML_DEVICE_ADDRESSING_MODE_*
_NAMESPACE = uuid.UUID("6e76736d-0000-5000-8000-000000000001")


def compile_state(spec: str, groups: tuple[Group, ...], node: str, index: int) -> State:
    """The state of a fresh node. `index` places it in a rack; the same arguments give the same GPU UUIDs."""
    state = State()
    state.magic, state.layout, state.size = MAGIC, LAYOUT, ctypes.sizeof(State)
    state.driver_version, state.cuda_version = DRIVER_VERSION.encode(), CUDA_VERSION
    state.node, state.spec = node.encode(), spec.encode()
    taken: set[str] = set()
    for group in groups:
        model = read_model(group.model)
        for number in range(group.count):
            position = state.gpu_count
            address = _free_address(model["pci"], number, taken)
            _fill_gpu(state.gpus[position], model, group, node, index, position, address)
            state.gpu_count += 1
    for position in range(state.gpu_count):
        numa = 0 if position < (state.gpu_count + 1) // 2 else 1
        state.gpus[position].fixed.numa_node = numa
    assert state.gpu_count <= MAX_GPUS
    set_latencies(state)
    return state


def set_latencies(state: State) -> None:
    """What the profiles' `latency_ms` says, as faults without end; of models that differ, the slower counts."""
    spec = state.spec.decode().partition(" ")[0]
    delays_ms: dict[str, float] = {}
    for group in parse_spec(spec):
        for function, delay_ms in read_model(group.model).get("latency_ms", {}).items():
            delays_ms[function] = max(delay_ms, delays_ms.get(function, 0.0))
    for fault, (function, delay_ms) in zip(state.faults, delays_ms.items(), strict=False):
        fault.function, fault.delay_us, fault.remaining = function.encode(), int(delay_ms * 1000), ALWAYS
    state.fault_count = len(delays_ms)


def _free_address(addresses: list[str], number: int, taken: set[str]) -> tuple[int, int, int]:
    domain, bus, rest = addresses[number % len(addresses)].split(":")
    base = int(domain, 16)
    while f"{base:04x}:{bus}" in taken:
        base += 1
    taken.add(f"{base:04x}:{bus}")
    return base, int(bus, 16), int(rest.split(".")[0], 16)


def _fill_gpu(
    gpu: Gpu, model: dict[str, Any], group: Group, node: str, index: int, position: int, address: tuple[int, int, int]
) -> None:
    fixed = gpu.fixed
    identity = uuid.uuid5(_NAMESPACE, f"{node}/{position}/{group.model}")
    fixed.name, fixed.uuid = model["name"].encode(), f"GPU-{identity}".encode()
    fixed.serial = str(identity.int % 10**13).encode()
    fixed.board_part_number, fixed.vbios = model["board_part_number"].encode(), model["vbios"].encode()
    fixed.minor, fixed.module_id = position, position + 1
    fixed.pci_domain, fixed.pci_bus, fixed.pci_device = address
    fixed.pci_device_id, fixed.pci_subsystem_id = model["pci_device_id"], model["pci_subsystem_id"]
    fixed.architecture, fixed.brand = ARCHITECTURES[model["architecture"]], BRANDS[model["brand"]]
    fixed.compute_major, fixed.compute_minor = (int(part) for part in model["compute_capability"].split("."))
    fixed.cores, fixed.nvlinks, fixed.nvlink_version = model["cores"], model["nvlinks"], model["nvlink_version"]
    fixed.addressing_mode = ADDRESSING[model["addressing_mode"]]
    fixed.pcie_generation, fixed.pcie_width = model["pcie_generation"], 16
    fixed.max_sm_clock_mhz, fixed.max_memory_clock_mhz = model["sm_clock_mhz"], model["memory_clock_mhz"]
    fixed.memory_bus_bits, fixed.power_limit_mw = model["memory_bus_bits"], model["power_limit_w"] * 1000
    fixed.memory_bytes, fixed.reserved_bytes = model["memory_mib"] << 20, round(model["reserved_mib"] * 2**20)
    fixed.bar1_bytes = model["bar1_mib"] << 20
    _fill_fabric(gpu, model, group, index)
    _fill_mig(fixed, model["mig"])


def _fill_fabric(gpu: Gpu, model: dict[str, Any], group: Group, index: int) -> None:
    if model["fabric"] == "none":
        return
    gpu.fixed.has_fabric = 1
    now = gpu.slots[0]
    now.fabric_state, now.fabric_health_mask, now.fabric_health_summary = (
        FABRIC_COMPLETED,
        HEALTH_MASK_GOOD,
        FABRIC_HEALTHY,
    )
    if model["fabric"] != "rack":
        return
    rack = index // NODES_PER_RACK
    cluster = uuid.UUID(group.cluster) if group.cluster else uuid.uuid5(_NAMESPACE, f"rack/{rack}")
    now.fabric_cluster[:] = cluster.bytes
    now.fabric_clique = 1 if group.clique is None else group.clique
    gpu.fixed.chassis_serial = f"18216752{rack:05d}".encode()
    gpu.fixed.slot_number = gpu.fixed.tray_index = index % NODES_PER_RACK


def _fill_mig(fixed: Fixed, mig: dict[str, Any]) -> None:
    total = mig["total"]
    fixed.mig_capable, fixed.memory_slices, fixed.max_mig_devices = 1, mig["memory_slices"], mig["max_devices"]
    fixed.mode_change_needs_reset, fixed.mode_survives_reboot = (
        mig["mode_change_needs_reset"],
        mig["mode_survives_reboot"],
    )
    fixed.multiprocessors, fixed.copy_engines, fixed.decoders = total["multiprocessors"], total["copy"], total["decode"]
    fixed.encoders, fixed.jpeg_engines, fixed.ofa_engines = total["encode"], total["jpeg"], total["ofa"]
    fixed.profile_count = len(mig["profiles"])
    for profile, row in zip(fixed.profiles, mig["profiles"], strict=False):
        _fill_profile(profile, row)


def _fill_profile(profile: Profile, row: list[Any]) -> None:
    name, profile.slot, profile.id, profile.max_instances, profile.slices, profile.size = row[:6]
    profile.multiprocessors, profile.copy_engines, profile.decoders, profile.encoders = row[6:10]
    profile.jpeg_engines, profile.ofa_engines, profile.memory_mib, preferred = row[10:]
    profile.name = name.encode()
    profile.capabilities = 2 if name.endswith("+gfx") else 0
    profile.start_count = len(preferred)
    profile.preferred[: len(preferred)] = preferred
    profile.starts[: len(preferred)] = sorted(preferred)
