"""The driver's files on a node, as they come and go under a plugin that runs."""

import asyncio
from pathlib import Path

import pytest

from api.ref import Ref
from kubeletplugin.driver_files import DriverFiles
from kubeletplugin.hardware.tree import DriverRoot
from kubeletplugin.model.inventory import Inventory
from tests.scenarios.hardware import h100, inventory

WITH_GPU = inventory(h100())
LIBRARY = f"usr/lib64/libcuda.so.{WITH_GPU.driver_version}"


class Node:
    """A driver root, what is known of it, and the Events that were sent."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.notes: list[str] = []
        for folder in ("dev", "usr/lib64"):
            (root / folder).mkdir(parents=True)
        (root / "dev/nvidiactl").touch()
        (root / LIBRARY).touch()
        self.files = DriverFiles(DriverRoot("/run/nvidia/driver", root), self, "n1")  # type: ignore[arg-type]

    def warn(self, regarding: Ref, reason: str, action: str, note: str) -> None:
        assert (regarding.name, reason) == ("n1", "DriverLibrariesMissing")
        self.notes.append(note)

    def look(self, seen: Inventory = WITH_GPU) -> list[str]:
        """Paths of the libraries that are known then."""
        asyncio.run(self.files.read_again(seen))
        return [library.path for library in self.files.tree.libraries]


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_what_is_read_again_and_says_the_same_stays_the_same_object(node: Node) -> None:
    node.files.read(WITH_GPU)
    before = node.files.tree
    node.look()
    assert node.files.tree is before
    (node.root / "usr/lib64" / f"libnvidia-ml.so.{WITH_GPU.driver_version}").touch()
    node.look()
    assert node.files.tree is not before


def test_a_driver_without_cuda_is_told_of_until_it_has_it(node: Node) -> None:
    (node.root / LIBRARY).rename(node.root / "aside")
    assert node.look() == []
    assert "has no libcuda.so" in node.notes[0]
    (node.root / "aside").rename(node.root / LIBRARY)
    told = len(node.notes)
    assert node.look() == [f"/{LIBRARY}"]
    assert len(node.notes) == told


def test_a_node_without_gpus_lacks_nothing(node: Node) -> None:
    (node.root / LIBRARY).unlink()
    node.look(inventory())
    assert node.notes == []


def test_what_cannot_be_read_leaves_what_is_known(node: Node) -> None:
    node.files.read(WITH_GPU)
    (node.root / "dev/nvidiactl").unlink()
    (node.root / "proc/driver/nvidia").mkdir(parents=True)
    (node.root / "proc/devices").mkdir()  # no file: reading it fails
    assert node.look() == [f"/{LIBRARY}"]
    assert node.notes == []
