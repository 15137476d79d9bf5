"""The layers of Python code: what pyproject.toml depends on, and our own packages."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from paths import ROOT

from image.cache import cached_folder, cached_layer, key_of
from image.debian import base_tree, compile_modules, python_version, remove
from image.oci import Layer, write_layer

SITE = "app/site"
PACKAGES = ("api", "kubeletplugin", "controller")

# The client's typed models and calls are loaded on demand only, and nothing demands them: bodies are plain dicts.
USELESS = (
    "**/__pycache__",
    "**/tests",
    "bin",
    "kubernetes/**/client/api/*_api.py",
    "kubernetes/**/client/models/v[1-9]*.py",
    "kubernetes/**/client/models/*_v[1-9]*.py",
    "kubernetes/e2e_test",
    "kubernetes/test",
)


def read_project() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project


def dependencies_layer() -> Layer:
    """Wheels for the interpreter of the image, whatever Python this machine has."""
    base = base_tree()
    wanted = sorted(read_project()["dependencies"])
    key = key_of(*wanted, *USELESS, base.name, Path(__file__))
    tree = cached_folder("site", key, lambda folder: install(wanted, base, folder))
    return cached_layer("dependencies", key, lambda path: write_layer(tree, path, SITE))


def install(wanted: list[str], base: Path, folder: Path) -> None:
    version = python_version(base)
    options = ["--quiet", "--no-compile", "--python-version", version, "--only-binary=:all:", "--target", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, *wanted], check=True)
    for pattern in USELESS:
        for path in list(folder.glob(pattern)):
            remove(path)
    compile_modules(base, folder, f"/{SITE}")


def program_layer() -> Layer:
    """Our packages below /app, and the console scripts below /usr/local/bin."""
    base = base_tree()
    key = key_of(*(ROOT / name for name in PACKAGES), ROOT / "pyproject.toml", base.name, Path(__file__))
    tree = cached_folder("program", key, lambda folder: lay_out(base, folder))
    return cached_layer("app", key, lambda path: write_layer(tree, path))


def lay_out(base: Path, folder: Path) -> None:
    project = read_project()
    for name in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
        shutil.copytree(ROOT / name, folder / "app" / name, ignore=ignored)
    compile_modules(base, folder / "app", "/app")
    for name, entry in project["scripts"].items():
        module, _, function = entry.partition(":")
        script = folder / "usr/local/bin" / name
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_text(f"#!/usr/bin/python3\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n")
        script.chmod(0o755)
