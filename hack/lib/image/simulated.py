"""The layer of the simulator image: the simulator's package and the libraries and tools that it has compiled."""

import shutil
import subprocess
from pathlib import Path

from paths import ROOT, SIMULATOR

from image.cache import cached_folder, cached_layer, key_of
from image.debian import base_tree, compile_modules
from image.oci import Layer, write_layer

PACKAGE = ROOT / "hack/lib/simulator"
SOURCES = ("__pycache__", "*.pyc", "*.c", "*.h", "*.go", "go.*")


def build_artefacts() -> Path:
    """The folder of the simulator's programs and libraries."""
    built = subprocess.run([SIMULATOR, "build"], stdout=subprocess.PIPE, check=True, text=True)
    return Path(built.stdout.strip())


def simulator_layer() -> Layer:
    artefacts = build_artefacts()
    base = base_tree()
    key = key_of(PACKAGE, artefacts, base.name, Path(__file__))
    tree = cached_folder("simulation", key, lambda folder: lay_out(base, artefacts, folder))
    return cached_layer("simulator", key, lambda path: write_layer(tree, path, "app"))


def lay_out(base: Path, artefacts: Path, folder: Path) -> None:
    shutil.copytree(PACKAGE, folder / "simulator", ignore=shutil.ignore_patterns(*SOURCES))
    shutil.copytree(artefacts, folder / "artefacts", symlinks=True)
    compile_modules(base, folder / "simulator", "/app/simulator")
