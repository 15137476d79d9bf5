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


def test_the_only_vendor_is_waited_for(settings: Settings) -> None:
    assert find_drivers(settings, [AMD_GPU_DRIVER]) == [AMD_GPU_DRIVER]


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
