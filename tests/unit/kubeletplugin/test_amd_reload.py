"""The mark of a reload: only a reload of ours, in this boot, is finished by us."""

from pathlib import Path

from kubeletplugin.amd_reload import ReloadMark


def test_a_mark_counts_for_its_boot_until_it_is_cleared(tmp_path: Path) -> None:
    mark = ReloadMark(tmp_path / "reloading")
    assert not mark.is_set("boot-1"), "an administrator who unloads the driver is left alone"
    mark.set("boot-1")
    assert ReloadMark(tmp_path / "reloading").is_set("boot-1")
    assert not mark.is_set("boot-2"), "a node that booted since loads its driver itself"
    mark.clear()
    mark.clear()
    assert not mark.is_set("boot-1")
