"""Simulated hardware of a node, put under its driver root by `hack/simulator`."""

import os
from pathlib import Path

from paths import SIMULATOR

from cluster.provider import run
from cluster.report import ClusterError
from cluster.shape import Shape, node_number


def install(shape: Shape, node: str, root: Path) -> None:
    """Nothing for a node without a profile."""
    profile = shape.profile(node)
    if profile is not None:
        _simulator("install", root, "--profile", profile, "--node", node, "--index", str(node_number(node) - 1))


def reboot(shape: Shape, node: str, root: Path) -> None:
    """What a reset of the machine does to the hardware: MIG instances are gone."""
    if shape.profile(node) is not None:
        _simulator("reboot", root)


def _simulator(verb: str, root: Path, *options: str) -> None:
    if not os.access(SIMULATOR, os.X_OK):
        raise ClusterError(f"simulated hardware needs {SIMULATOR}, which this checkout does not have")
    run([SIMULATOR, verb, "--root", root, *options])
