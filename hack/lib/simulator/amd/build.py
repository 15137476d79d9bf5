"""Build the library from `src/`, once per content of the sources."""

import hashlib
import os
import subprocess
from pathlib import Path
from typing import Final

SOURCES: Final = Path(__file__).parent / "src"
FLAGS: Final = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-fPIC", "-shared", "-fvisibility=hidden")


def build_library(cache: Path) -> Path:
    """Path of the built `libamd_smi.so`; needs a C compiler where it has not been built from these sources yet."""
    files = sorted(SOURCES.iterdir())
    digest = hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()[:16]
    built = cache / "simulator" / f"libamd_smi-{digest}.so"
    if not built.exists():
        built.parent.mkdir(parents=True, exist_ok=True)
        fresh = built.with_suffix(f".{os.getpid()}")
        code = [str(path) for path in files if path.suffix == ".c"]
        subprocess.run(
            [os.environ.get("CC", "cc"), *FLAGS, "-Wl,-soname,libamd_smi.so", "-o", str(fresh), *code], check=True
        )
        fresh.rename(built)
    return built
