"""Builds the Go programs of the simulated fabric."""

import os
import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).parent
PROGRAMS = ("nvidia-imex", "nvidia-imex-ctl", "fabric-test")


def sources() -> list[Path]:
    return sorted([*SOURCE.rglob("*.go"), SOURCE / "go.mod"])


def build(folder: Path, version: str) -> None:
    """Static programs that report `version` as the driver's. Raises ValueError where Go is missing or fails."""
    if not shutil.which("go"):
        raise ValueError("Go is needed to build the simulated IMEX programs; `hack/simulator build` fetches it")
    linking = f"-s -w -X partita/simulator/imex/internal/imex.Version={version}"
    flags = ["-trimpath", "-buildvcs=false", "-ldflags", linking]
    result = subprocess.run(
        ["go", "build", *flags, "-o", str(folder), "./cmd/..."],
        cwd=SOURCE,
        env={**os.environ, "CGO_ENABLED": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        raise ValueError(f"go failed:\n{result.stderr}")
