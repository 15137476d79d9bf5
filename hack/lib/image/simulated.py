"""The layer of the simulator image: the simulator's package and the libraries and tools that it has compiled."""

import shutil
import subprocess
from pathlib import Path

from paths import ROOT

from image.cache import cached_folder, cached_layer, key_of
from image.debian import base_tree, compile_modules
from image.oci import Layer, write_layer

PACKAGE = ROOT / "hack/lib/simulator"
SOURCES = ("__pycache__", "*.pyc", "*.c", "*.h", "*.go", "go.*")


def simulator_layer() -> Layer:
    built = subprocess.run([ROOT / "hack/simulator", "build"], stdout=subprocess.PIPE, check=True, text=True)
    artefacts = Path(built.stdout.split()[-1])
    base = base_tree()
    key = key_of(PACKAGE, artefacts, base.name, Path(__file__))
    tree = cached_folder("simulation", key, lambda folder: lay_out(base, artefacts, folder))
    return cached_layer("simulator", key, lambda path: write_layer(tree, path, "app"))


def lay_out(base: Path, artefacts: Path, folder: Path) -> None:
    shutil.copytree(PACKAGE, folder / "simulator", ignore=shutil.ignore_patterns(*SOURCES))
    shutil.copytree(artefacts, folder / "artefacts", symlinks=True)
    compile_modules(base, folder / "simulator", "/app/simulator")
