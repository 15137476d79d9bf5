"""KFD's links between nodes, by which others choose GPUs that are near each other."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from simulator.amd import node

from kubeletplugin.hardware.amdsmi import AmdSmi
from kubeletplugin.model.amd_partitions import Mode
from kubeletplugin.model.amd_prepare import ReloadDriver, SetComputeMode, SetMemoryMode

Make = Callable[..., AmdSmi]
FIRST = "0000:05:00.0"
PCIE, XGMI = "2", "11"  # kfd_crat.h


def read_properties(path: Path) -> dict[str, str]:
    lines = (line.split(maxsplit=1) for line in path.read_text().splitlines())
    return {words[0]: words[1] for words in lines if len(words) == 2}


def links_by_node(root: Path, kind: str) -> dict[str, list[dict[str, str]]]:
    """Of each GPU's node that has any."""
    found: dict[str, list[dict[str, str]]] = {}
    for folder in (root / "sys/class/kfd/kfd/topology/nodes").iterdir():
        properties = read_properties(folder / "properties")
        links = [read_properties(link / "properties") for link in sorted((folder / kind).glob("*"))]
        if properties["simd_count"] != "0" and links:
            assert int(properties[f"{kind}_count"]) == len(links)
            assert {link["node_from"] for link in links} == {folder.name}
            found[folder.name] = links
    return found


def weights(links: list[dict[str, str]]) -> Counter[tuple[str, str]]:
    return Counter((link["type"], link["weight"]) for link in links)


def test_a_partition_is_nearest_to_the_others_of_its_gpu_and_links_follow_the_modes(make: Make, root: Path) -> None:
    backend = make("mi300xx2")
    assert links_by_node(root, "io_links") == {}, "nobody has asked for them"
    node.show_links(root)
    whole = links_by_node(root, "io_links")
    assert [weights(links) for links in whole.values()] == [Counter({(PCIE, "20"): 1, (XGMI, "41"): 1})] * 2
    backend.apply_step(SetComputeMode(FIRST, Mode("CPX", "NPS1")))
    parts = links_by_node(root, "io_links")
    of_a_part = Counter({(PCIE, "20"): 1, (XGMI, "13"): 7, (XGMI, "41"): 1})
    assert Counter(str(weights(links)) for links in parts.values())[str(of_a_part)] == 8
    assert len(parts) == 9
    backend.apply_step(SetComputeMode(FIRST, Mode("SPX", "NPS1")))
    assert links_by_node(root, "io_links") == whole


def test_gpus_of_two_hives_reach_each_other_over_pcie(make: Make, root: Path) -> None:
    """As captured: eight MI210 are two hives of four."""
    make("mi210")
    node.show_links(root)
    assert [weights(links) for links in links_by_node(root, "io_links").values()] == [
        Counter({(PCIE, "20"): 1, (XGMI, "15"): 3})
    ] * 8
    assert [weights(links) for links in links_by_node(root, "p2p_links").values()] == [Counter({(PCIE, "40"): 4})] * 8


def test_a_driver_that_is_loaded_again_in_another_memory_mode_shows_the_links_of_what_there_is_then(
    make: Make, root: Path
) -> None:
    backend = make("mi300xx2")
    node.show_links(root)
    backend.apply_step(SetMemoryMode(FIRST, "NPS4"))
    backend.apply_step(ReloadDriver((FIRST,), "NPS4"))
    there = len(links_by_node(root, "io_links"))
    partitions = [len(gpu.partitions) for gpu in backend.read_inventory().gpus]
    assert there == sum(partitions) > 2
    assert all(len(links) == there for links in links_by_node(root, "io_links").values())
