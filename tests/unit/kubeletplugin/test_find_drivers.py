"""Which of the enabled drivers begin: those whose hardware shows itself, or is away for our own doing."""

from pathlib import Path

import pytest

from api.names import AMD_GPU_DRIVER, NVIDIA_GPU_DRIVER
from kubeletplugin.__main__ import find_drivers
from kubeletplugin.settings import RELOAD_MARK, Settings

BOTH = [NVIDIA_GPU_DRIVER, AMD_GPU_DRIVER]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings("n1", driver_root=str(tmp_path / "root"), kubelet_plugins_directory_path=str(tmp_path / "plugins"))


def test_a_node_without_hardware_has_nothing_to_wait_for(settings: Settings) -> None:
    assert find_drivers(settings, [NVIDIA_GPU_DRIVER]) == []
    assert find_drivers(settings, BOTH) == []


def test_a_gpu_is_waited_for_until_its_driver_is_loaded(settings: Settings) -> None:
    """The driver's own files come later; another device of NVIDIA's, such as a network card's bridge, is no GPU."""
    devices = settings.seen_driver_root / "sys/bus/pci/devices"
    add_pci_device(devices / "0000:01:00.0", vendor="0x10de", kind="0x060400")
    assert find_drivers(settings, BOTH) == []
    add_pci_device(devices / "0000:02:00.0", vendor="0x10de", kind="0x030200")
    assert find_drivers(settings, BOTH) == [NVIDIA_GPU_DRIVER]


def add_pci_device(folder: Path, vendor: str, kind: str) -> None:
    folder.mkdir(parents=True)
    (folder / "vendor").write_text(f"{vendor}\n")
    (folder / "class").write_text(f"{kind}\n")


def test_each_vendor_is_found_by_its_driver(settings: Settings) -> None:
    (settings.seen_driver_root / "sys/module/amdgpu/drivers/pci:amdgpu").mkdir(parents=True)
    assert find_drivers(settings, BOTH) == [AMD_GPU_DRIVER]
    library = settings.seen_driver_root / "usr/lib64/libnvidia-ml.so.1"
    library.parent.mkdir(parents=True)
    library.touch()
    assert find_drivers(settings, BOTH) == BOTH


def test_a_driver_that_a_reload_of_ours_took_away_begins_all_the_same(settings: Settings) -> None:
    data = settings.data_directory(AMD_GPU_DRIVER)
    data.mkdir(parents=True)
    (data / RELOAD_MARK).touch()
    assert find_drivers(settings, BOTH) == [AMD_GPU_DRIVER]
