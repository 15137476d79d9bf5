"""Build the library and `modprobe` from `src/`, once per content of the sources."""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Final

from simulator.build import cache_folder, gcc

SOURCES: Final = Path(__file__).parent / "src"
LIBRARY: Final = "libamd_smi.so"
MODPROBE: Final = "modprobe"
_FLAGS: Final = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-fvisibility=hidden")
_PROGRAMS: Final = {
    LIBRARY: ("-fPIC", "-shared", f"-Wl,-soname,{LIBRARY}", "amdsmi.c", "state.c", "tree.c", "links.c"),
    MODPROBE: ("-static", "-DSTATIC_TOOL", "modprobe.c", "state.c", "tree.c", "links.c"),
}


def build() -> Path:
    """The folder with both. Raises ValueError where gcc is needed and missing, or fails."""
    digest = hashlib.sha256(repr((_FLAGS, _PROGRAMS)).encode())
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.read_bytes())
    built = cache_folder().resolve() / f"amd-{digest.hexdigest()[:16]}"
    if not built.exists():
        fresh = built.with_name(f".{built.name}.{os.getpid()}")
        fresh.mkdir(parents=True, exist_ok=True)
        for name, words in _PROGRAMS.items():
            gcc(SOURCES, *_FLAGS, *words, "-o", str(fresh / name))
        try:
            fresh.rename(built)
        except OSError:  # somebody else was faster
            shutil.rmtree(fresh)
    return built
