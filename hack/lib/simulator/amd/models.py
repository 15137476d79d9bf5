"""The models that can be simulated, and how a node of each is laid out.

Figures: AMD's data sheets; memory as amdgpu reports it (the firmware keeps 16 MiB). Rules of modes: `src/state.c`.
"""

import re
from dataclasses import dataclass
from typing import Final

MIB: Final = 1 << 20
FIRMWARE_MIB: Final = 16

# Bus numbers of the GPUs of a captured eight-way MI300X node.
BUSES: Final = (0x05, 0x27, 0x47, 0x65, 0x85, 0xA7, 0xC7, 0xE5)


@dataclass(frozen=True, slots=True)
class Model:
    product: str
    device_id: int
    gfx_version: int
    """90402 is gfx942."""
    compute_units: int
    memory_gib: int
    max_clock_mhz: int = 2100
    xcc_count: int = 0
    """Compute dies that partitions are made of; 0: the model cannot partition."""
    memory_modes: tuple[int, ...] = (1,)
    two_io_dies: bool = False
    apu: bool = False
    gpus: int = 8
    """In the usual node."""
    hive_size: int = 8

    @property
    def vram_bytes(self) -> int:
        return (self.memory_gib * 1024 - FIRMWARE_MIB) * MIB


MODELS: Final = {
    "mi210": Model("AMD Instinct MI210", 0x740F, 90010, 104, 64, max_clock_mhz=1700, hive_size=4),
    "mi300a": Model("AMD Instinct MI300A", 0x74A0, 90402, 228, 128, xcc_count=6, apu=True, gpus=4, hive_size=4),
    "mi300x": Model("AMD Instinct MI300X OAM", 0x74A1, 90402, 304, 192, xcc_count=8, memory_modes=(1, 2, 4)),
    "mi308x": Model("AMD Instinct MI308X OAM", 0x74A2, 90402, 80, 192, xcc_count=4, memory_modes=(1, 4)),
    "mi325x": Model("AMD Instinct MI325X OAM", 0x74A5, 90402, 304, 256, xcc_count=8, memory_modes=(1, 2, 4)),
    "mi350x": Model(
        "AMD Instinct MI350X OAM", 0x75A0, 90500, 256, 288, 2400, xcc_count=8, memory_modes=(1, 2), two_io_dies=True
    ),
    "mi355x": Model(
        "AMD Instinct MI355X OAM", 0x75A3, 90500, 256, 288, 2400, xcc_count=8, memory_modes=(1, 2), two_io_dies=True
    ),
}

_PROFILE: Final = re.compile(rf"(?P<model>{'|'.join(MODELS)})(?:x(?P<count>[1-8]))?")


def parse_profile(text: str) -> tuple[Model, int] | None:
    """`mi300x` is the usual node, `mi300xx2` one of two GPUs; None where `text` names no AMD model."""
    found = _PROFILE.fullmatch(text)
    if found is None:
        return None
    model = MODELS[found["model"]]
    return model, int(found["count"] or model.gpus)
