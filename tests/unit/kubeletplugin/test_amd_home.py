"""Where an idle node returns to: the modes of before the first claim, until somebody decides otherwise."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from kubeletplugin.amd_home import HomeModes
from kubeletplugin.disk import DiskFailed
from kubeletplugin.model.amd_partitions import AmdGpu, AmdInventory, Mode, Partition

SPX, CPX4 = Mode("SPX", "NPS1"), Mode("CPX", "NPS4")


def gpu(mode: Mode) -> AmdGpu:
    partition = Partition(0, 1, 128, 304, 1216, 1 << 30)
    return AmdGpu("0000:05:00.0", "0x74a1", "a1", "MI300X", 304, 1216, 1 << 30, (partition,), mode)


def node(mode: Mode) -> AmdInventory:
    return AmdInventory("6.14", "src", (gpu(mode),))


def test_the_first_change_of_a_boot_says_where_home_is(tmp_path: Path) -> None:
    home = HomeModes(tmp_path / "home-modes.json")
    home.remember("boot", node(SPX))
    home.remember("boot", node(CPX4))
    assert home.target("boot", node(CPX4)) == ("spx_nps1",)
    assert home.target("boot", node(SPX)) == ()
    assert home.target("next boot", node(CPX4)) == (), "a boot resets modes anyway"
    only_compute = replace(gpu(SPX), mode=Mode("CPX", "NPS1"))
    assert home.target("boot", AmdInventory("6.14", "src", (only_compute,))) == (), "any claim may change that"


def test_what_was_decided_since_is_home(tmp_path: Path) -> None:
    home = HomeModes(tmp_path / "home-modes.json")
    home.remember("boot", node(SPX))
    home.forget()
    home.forget()
    assert home.target("boot", node(CPX4)) == ()


def test_a_mode_that_claims_have_not_brought_is_a_choice_that_stands(tmp_path: Path) -> None:
    """Also where it was chosen while the program was not running: what it saw last is on disk."""
    HomeModes(tmp_path / "home-modes.json").remember("boot", node(SPX))
    HomeModes(tmp_path / "home-modes.json").observe("boot", node(CPX4), is_ours=True)
    HomeModes(tmp_path / "home-modes.json").observe("boot", node(Mode("QPX", "NPS4")), is_ours=False)
    assert HomeModes(tmp_path / "home-modes.json").target("boot", node(CPX4)) == ()


def test_what_claims_have_brought_and_gpus_that_go_and_come_are_no_choice(tmp_path: Path) -> None:
    home = HomeModes(tmp_path / "home-modes.json")
    home.observe("boot", node(CPX4), is_ours=False)
    home.remember("boot", node(SPX))
    home.observe("boot", node(CPX4), is_ours=True)
    home.observe("boot", AmdInventory(unreadable=("away",)), is_ours=False)
    home.observe("boot", node(CPX4), is_ours=False)
    assert home.target("boot", node(CPX4)) == ("spx_nps1",)


def test_what_a_failed_reload_left_asked_for_is_no_choice_of_whoever_reloads_next(tmp_path: Path) -> None:
    home = HomeModes(tmp_path / "home-modes.json")
    home.expect("boot", "NPS4")
    home.remember("boot", node(SPX))
    home.expect("boot", "NPS4")
    home.observe("boot", node(CPX4), is_ours=False)
    assert home.target("boot", node(CPX4)) == ("spx_nps1",)
    home.observe("boot", node(SPX), is_ours=True)
    home.observe("boot", node(CPX4), is_ours=False)
    assert home.target("boot", node(CPX4)) == (), "it has come, and is not asked for any more"


def test_a_file_of_an_earlier_version_says_where_home_is(tmp_path: Path) -> None:
    (tmp_path / "home-modes.json").write_text('{"bootID": "boot", "modes": {"0000:05:00.0": "spx_nps1"}}')
    home = HomeModes(tmp_path / "home-modes.json")
    home.observe("boot", node(CPX4), is_ours=False)
    assert home.target("boot", node(CPX4)) == ("spx_nps1",)
    home.observe("boot", node(Mode("QPX", "NPS4")), is_ours=False)
    assert home.target("boot", node(CPX4)) == ()


def test_a_damaged_file_stops_nothing(tmp_path: Path) -> None:
    file = tmp_path / "home-modes.json"
    file.write_text("{")
    home = HomeModes(file)
    assert home.target("boot", node(CPX4)) == ()
    home.remember("boot", node(SPX))
    assert home.target("boot", node(CPX4)) == ("spx_nps1",)


def test_a_disk_that_takes_nothing_costs_what_was_seen_and_stops_nothing(tmp_path: Path) -> None:
    """The plugin serves all the same; only before a change of ours must the way home be on the disk."""
    home = HomeModes(tmp_path / "home-modes.json")
    home.remember("boot", node(SPX))
    blocked = tmp_path / f"home-modes.json.{os.getpid()}.tmp"
    blocked.mkdir()
    home.expect("boot", "NPS4")
    home.observe("boot", node(CPX4), is_ours=True)
    assert home.target("boot", node(CPX4)) == ("spx_nps1",)
    with pytest.raises(DiskFailed):
        home.remember("next boot", node(SPX))
