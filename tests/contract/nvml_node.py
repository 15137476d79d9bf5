"""A simulated NVIDIA node in a folder, and pynvml bound to its library (or to any other)."""

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pynvml
from simulator.compile import DRIVER_VERSION
from simulator.install import install, parse_arguments
from simulator.layout import State, open_state
from simulator.tree import LIBRARIES, state_path

LIBRARY = "libnvidia-ml.so.1"
SOURCES = Path(__file__).parents[2] / "hack/lib"
WHOLE = {1: 0, 2: 1, 3: 2, 4: 3, 7: 4}
"""Slices of a GPU instance -> the compute instance profile that spans it (nvml.h NVML_COMPUTE_INSTANCE_PROFILE_*)."""


@dataclass(frozen=True, slots=True)
class Node:
    """A simulated node below `root`."""

    root: Path

    @property
    def library(self) -> Path:
        return self.root / LIBRARIES / LIBRARY

    def simulator(self, verb: str, *arguments: str) -> str:
        """`simulator VERB --root ROOT ...`; fails the test where it fails."""
        command = [sys.executable, "-m", "simulator", verb, "--root", str(self.root), *arguments]
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(SOURCES)}
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def smi(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.root / "usr/bin/nvidia-smi", *arguments], capture_output=True, text=True, check=False
        )

    def client(self, code: str, *arguments: str) -> subprocess.Popen[str]:
        """Another process that has pynvml open on this node and runs `code`."""
        prologue = "import ctypes, json, sys, time, pynvml\nfrom pynvml import *\n"
        prologue += "pynvml.nvmlLib = ctypes.CDLL(sys.argv[1])\nnvmlInit()\n"
        command = [sys.executable, "-c", prologue + code, str(self.library), *arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    @contextmanager
    def state(self) -> Iterator[State]:
        with open_state(state_path(self.root, DRIVER_VERSION)) as state:
            yield state

    def capabilities(self) -> set[str]:
        """Instances that /proc shows, as `gpu0/mig/gi1/ci0`."""
        folder = self.root / "proc/driver/nvidia/capabilities"
        return {str(path.parent.relative_to(folder)) for path in folder.glob("gpu*/mig/gi*/**/access")}

    def capability_nodes(self) -> set[int]:
        """Minor numbers of the instance nodes in /dev/nvidia-caps."""
        minors = {int(path.name.removeprefix("nvidia-cap")) for path in (self.root / "dev/nvidia-caps").iterdir()}
        return minors - {1, 2}  # mig/config and mig/monitor

    def instances(self) -> set[str]:
        """What the state itself holds, in the form of `capabilities`."""
        found = set()
        with self.state() as state:
            for gpu in state.gpus[: state.gpu_count]:
                for number, instance in enumerate(gpu.now.instances):
                    if instance.used:
                        name = f"gpu{gpu.fixed.minor}/mig/gi{number}"
                        found |= {name, *(f"{name}/ci{ci}" for ci in range(8) if instance.compute[ci].used)}
        return found


def make_node(root: Path, profile: str, *arguments: str) -> Node:
    install(parse_arguments(["--root", str(root), "--profile", profile, "--node", "node-1", *arguments]))
    return Node(root)


@contextmanager
def bound(library: Path) -> Iterator[Any]:
    """pynvml, initialised on this library."""
    pynvml.nvmlLib = ctypes.CDLL(os.fspath(library))
    pynvml._nvmlGetFunctionPointer_cache.clear()
    pynvml.nvmlInit()
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def error(call: Any, *arguments: Any, **keywords: Any) -> int:
    """The NVML code that a call ends with; 0 where it succeeds."""
    try:
        call(*arguments, **keywords)
    except pynvml.NVMLError as failure:
        return int(failure.value)
    return 0


def profiles_of(device: Any) -> dict[str, Any]:
    """Every GPU instance profile that a GPU offers, by name without the `MIG ` prefix."""
    infos = (pynvml.nvmlDeviceGetGpuInstanceProfileInfo(device, index, version=2) for index in profile_indices(device))
    return {info.name.removeprefix("MIG "): info for info in infos}


def profile_indices(device: Any) -> list[int]:
    """Indices of the profiles that a GPU offers. Those that the library knows end before the first that is invalid."""
    found = []
    for index in range(pynvml.NVML_GPU_INSTANCE_PROFILE_COUNT):
        code = error(pynvml.nvmlDeviceGetGpuInstanceProfileInfo, device, index, version=2)
        if code == pynvml.NVML_ERROR_INVALID_ARGUMENT:
            break
        if code != pynvml.NVML_ERROR_NOT_SUPPORTED:
            found.append(index)
    return found


def placements_of(device: Any, profile_id: int) -> list[tuple[int, int]]:
    count = ctypes.c_uint()
    pynvml.nvmlDeviceGetGpuInstancePossiblePlacements(device, profile_id, None, ctypes.byref(count))
    array = (pynvml.c_nvmlGpuInstancePlacement_t * count.value)()
    pynvml.nvmlDeviceGetGpuInstancePossiblePlacements(device, profile_id, array, ctypes.byref(count))
    return [(placement.start, placement.size) for placement in array]


def create_at(device: Any, profile_id: int, start: int, size: int) -> Any:
    placement = pynvml.c_nvmlGpuInstancePlacement_t(start, size)
    return pynvml.nvmlDeviceCreateGpuInstanceWithPlacement(device, profile_id, ctypes.byref(placement))


def create_whole(device: Any, info: Any, start: int | None = None) -> tuple[Any, Any]:
    """A GPU instance and the compute instance that spans it."""
    if start is None:
        instance = pynvml.nvmlDeviceCreateGpuInstance(device, info.id)
    else:
        instance = create_at(device, info.id, start, placements_of(device, info.id)[0][1])
    return instance, pynvml.nvmlGpuInstanceCreateComputeInstance(instance, WHOLE[info.sliceCount])


def mig_devices(device: Any) -> list[Any]:
    found = []
    for index in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(device)):
        try:
            found.append(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(device, index))
        except pynvml.NVMLError_NotFound:
            continue
    return found


def read_line(process: subprocess.Popen[str]) -> Any:
    assert process.stdout
    return json.loads(process.stdout.readline())
