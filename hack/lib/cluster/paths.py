"""Where the repository, its cache and the state of clusters lie."""

import os
from pathlib import Path

ROOT = Path(os.environ.get("ROOT") or Path(__file__).resolve().parents[3])
CACHE = Path(os.environ.get("PARTITA_CACHE") or ROOT / ".cache")
TOOLS = Path(__file__).resolve().parent / "tools"
SCRIPTS = Path(__file__).resolve().parent / "node"
SIMULATOR = ROOT / "hack" / "simulator"
IMAGES = CACHE / "images"


def state_dir(name: str) -> Path:
    return CACHE / "clusters" / name
