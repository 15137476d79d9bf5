"""Where an idle node returns to: the modes of before the first claim, until somebody decides otherwise."""

from dataclasses import replace
from pathlib import Path

from kubeletplugin.amd_home import HomeModes
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


def test_a_damaged_file_stops_nothing(tmp_path: Path) -> None:
    file = tmp_path / "home-modes.json"
    file.write_text("{")
    home = HomeModes(file)
    assert home.target("boot", node(CPX4)) == ()
    home.remember("boot", node(SPX))
    assert home.target("boot", node(CPX4)) == ("spx_nps1",)
