"""Compiles the native parts with gcc, and IMEX with Go, into the cache, keyed by what they are made of."""

import fcntl
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from simulator.compile import DRIVER_VERSION
from simulator.imex import build as imex

NATIVE = Path(__file__).parent / "native"
FLAGS = ["-std=gnu11", "-O2", "-g0", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden"]
CORE = [
    "state.c",
    "tree.c",
    "library.c",
    "mig.c",
    "compute.c",
    "device.c",
    "telemetry.c",
    "fabric.c",
    "events.c",
    "fields.c",
    "unsupported.c",
]
STAND_INS = {
    "libcuda.so": "libcuda.so.1",
    "libcudadebugger.so": "libcudadebugger.so.1",
    "libnvidia-allocator.so": "libnvidia-allocator.so.1",
    "libnvidia-cfg.so": "libnvidia-cfg.so.1",
    "libnvidia-gpucomp.so": f"libnvidia-gpucomp.so.{DRIVER_VERSION}",
    "libnvidia-nvvm.so": "libnvidia-nvvm.so.4",
    "libnvidia-opencl.so": "libnvidia-opencl.so.1",
    "libnvidia-ptxjitcompiler.so": "libnvidia-ptxjitcompiler.so.1",
}
"""File without version -> SONAME. Empty libraries that are found, mounted and linked to as the driver's own are."""
STATE_STUB, LIBRARY, TOOL = "libnvidia-simulator.so", "libnvidia-ml.so", "nvidia-smi"
MOUNT = "nvidia-simulator-mount"


def cache_folder() -> Path:
    return Path(os.environ.get("PARTITA_CACHE") or Path(__file__).parents[3] / ".cache") / "simulator"


def build() -> Path:
    """The folder with every artefact; compiled only when a source changed. Raises ValueError where gcc fails."""
    digest = hashlib.sha256(repr((FLAGS, CORE, STAND_INS, DRIVER_VERSION)).encode())
    for source in [*sorted(NATIVE.iterdir()), *imex.sources()]:
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    folder = cache_folder() / digest.hexdigest()[:16]
    if folder.is_dir():
        return folder
    cache_folder().mkdir(parents=True, exist_ok=True)
    with (cache_folder() / "build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            _compile_all(folder)
    return folder


def _compile_all(folder: Path) -> None:
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    core = [str(NATIVE / source) for source in CORE]
    version = f'-DDRIVER_VERSION="{DRIVER_VERSION}"'
    library = [
        "-shared",
        "-fPIC",
        version,
        "-Wl,-soname,libnvidia-ml.so.1",
        "-Wl,-z,now",
        *core,
        "-o",
        LIBRARY,
        "-ldl",
        "-lpthread",
    ]
    gcc(aside, *FLAGS, *library)
    gcc(aside, *FLAGS, "-static", "-DSTATIC_TOOL", version, *core, str(NATIVE / "smi.c"), "-o", TOOL)
    gcc(aside, *FLAGS, "-static", "-s", str(NATIVE / "mount.c"), "-o", MOUNT)
    for name, soname in (STAND_INS | {STATE_STUB: f"{STATE_STUB}.{DRIVER_VERSION}"}).items():
        small = ["-shared", "-nostdlib", "-s", "-Wl,-z,noseparate-code", f"-Wl,-soname,{soname}"]
        gcc(aside, *FLAGS, "-fPIC", *small, str(NATIVE / "stub.c"), "-o", name)
    imex.build(aside, DRIVER_VERSION)
    aside.rename(folder)


def gcc(folder: Path, *arguments: str) -> None:
    """Raises ValueError where gcc is missing or fails."""
    if not shutil.which("gcc"):
        raise ValueError("gcc is needed to build simulated hardware (Debian: apt-get install gcc libc6-dev)")
    result = subprocess.run(["gcc", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode:
        raise ValueError(f"gcc failed:\n{result.stderr}")
