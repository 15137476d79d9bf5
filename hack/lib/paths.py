"""Where the repository, its cache and the state of clusters lie."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("PARTITA_CACHE") or ROOT / ".cache")
IMAGES = CACHE / "images"
SIMULATOR = ROOT / "hack" / "simulator"
TOOLS = ROOT / "hack" / "lib" / "cluster" / "tools"
SCRIPTS = ROOT / "hack" / "lib" / "cluster" / "node"


def state_dir(name: str) -> Path:
    return CACHE / "clusters" / name
