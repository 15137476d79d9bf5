"""The layer of the simulator image: the simulator's package and the libraries and tools that it has compiled."""

import shutil
import subprocess
from pathlib import Path

from image.cache import CACHE, ROOT, cached_folder, cached_layer, key_of
from image.debian import base_tree, compile_modules
from image.oci import Layer, write_layer

PACKAGE = ROOT / "hack/lib/simulator"
ARTEFACTS = CACHE / "simulator"  # where `hack/simulator build` leaves them


def simulator_layer() -> Layer:
    subprocess.run([ROOT / "hack/simulator", "build"], stdout=subprocess.DEVNULL, check=True)
    base = base_tree()
    key = key_of(PACKAGE, ARTEFACTS, base.name, Path(__file__))
    tree = cached_folder("simulation", key, lambda folder: lay_out(base, folder))
    return cached_layer("simulator", key, lambda path: write_layer(tree, path, "app"))


def lay_out(base: Path, folder: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc", "*.c", "*.h")
    shutil.copytree(PACKAGE, folder / "simulator", ignore=ignored)
    shutil.copytree(ARTEFACTS, folder / "artefacts", symlinks=True)
    compile_modules(base, folder / "simulator", "/app/simulator")
