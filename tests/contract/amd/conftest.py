"""One simulated AMD node for the whole run, since a process loads one `libamd_smi.so`; each test installs its model."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(REPOSITORY / "hack/lib"))

from simulator.amd import node  # noqa: E402

from kubeletplugin.hardware.amd_sysfs import AmdRoot  # noqa: E402
from kubeletplugin.hardware.amdsmi import AmdSmi  # noqa: E402


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if os.geteuid():
        pytest.fail("these tests make device nodes; run them as root")
    return tmp_path_factory.mktemp("amd-root")


@pytest.fixture
def install(root: Path) -> Iterator[Callable[[str], Any]]:
    """`install(profile)` makes the root a fresh node of that profile and gives the initialised `amdsmi` module."""
    opened: list[Any] = []

    def make(profile: str, **options: Any) -> Any:
        node.install(root, profile, **options)
        os.environ["ROCM_PATH"] = str(root / "opt/rocm")
        import amdsmi

        amdsmi.amdsmi_init()
        opened.append(amdsmi)
        return amdsmi

    yield make
    for module in opened:
        module.amdsmi_shut_down()


@pytest.fixture
def make(root: Path) -> Callable[..., AmdSmi]:
    """`make(profile)` makes the root a fresh node of that profile and gives our back-end on it."""

    def build(profile: str, **options: Any) -> AmdSmi:
        node.install(root, profile, **options)
        return AmdSmi(AmdRoot("/host", root), sleep=lambda _: None)

    return build
