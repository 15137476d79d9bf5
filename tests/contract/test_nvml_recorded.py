"""Simulated models and the node around them against what real hardware answered (`recorded/`, `record_nvml.py`)."""

import json
import os
import re
import stat
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from nvml_node import Node, bound, make_node
from record_nvml import record_node

RECORDED = Path(__file__).parent / "recorded"
MODELS = sorted(path.stem for path in RECORDED.glob("*.json"))
OF_THE_MACHINE = {
    "driver": "which driver is installed",
    "cuda": "comes with the driver",
    "addressing_mode": "HMM takes a kernel that was built for it",
    "bus_id": "the slot",
    "minor": "the order in which the driver found its GPUs",
    "persistence_mode": "an administrator's setting",
    "field_values.NVML_FI_DEV_NVLINK_LINK_COUNT": "NVLink was switched off by a module parameter (NvLinkDisable)",
    "fabric_v2": "a virtual machine with one GPU has no NVSwitches, and the node that is simulated has",
    "fabric_v3": "likewise",
}
"""Answers that another machine gives otherwise with the same card, and why. All others are the model's."""


def read_record(model: str) -> Any:
    return json.loads((RECORDED / f"{model}.json").read_text())


def by_question(node: Any, gpu: Any) -> dict[str, Any]:
    """Answers about a node and one of its GPUs, by names such as `bar1` and `profiles.0x7`."""
    answers = {name: answer for name, answer in node.items() if name != "gpus"}
    for name, answer in gpu.items():
        if name in ("profiles", "field_values"):
            answers |= {f"{name}.{key}": value for key, value in answer.items()}
        else:
            answers[name] = answer
    return answers


def recorded_questions() -> list[tuple[str, str]]:
    found = [(model, by_question(record := read_record(model), record["gpus"][0])) for model in MODELS]
    return [(model, name) for model, answers in found for name in answers if name not in OF_THE_MACHINE]


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the first GPU of a simulated model answers to the recorder."""

    @lru_cache
    def ask(model: str) -> dict[str, Any]:
        with bound(make_node(tmp_path_factory.mktemp(model) / "driver", f"{model}x1").library):
            node = record_node()
        return by_question(node, node["gpus"][0])

    return ask


@pytest.mark.parametrize(("model", "question"), recorded_questions())
def test_a_simulated_model_answers_as_the_card_does(simulated: Any, model: str, question: str) -> None:
    record = read_record(model)
    for gpu in record["gpus"]:
        assert simulated(model)[question] == by_question(record, gpu)[question]


@pytest.mark.parametrize("model", MODELS)
def test_a_record_answers_every_question_that_is_asked_now(simulated: Any, model: str) -> None:
    record = read_record(model)
    for gpu in record["gpus"]:
        assert by_question(record, gpu).keys() == simulated(model).keys() >= OF_THE_MACHINE.keys()


@pytest.mark.parametrize("path", sorted(RECORDED.iterdir()), ids=lambda path: path.name)
def test_no_record_tells_one_card_from_another(path: Path) -> None:
    assert not re.search(r"[0-9a-f]{8}-[0-9a-f]{4}-|uuid|serial", path.read_text(), re.IGNORECASE)


# The node around the library


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Node:
    return make_node(tmp_path_factory.mktemp("tree") / "driver", "h200x1")


def printed(command: str) -> list[str]:
    """The lines that a command printed on the real machine."""
    blocks = (RECORDED / "tree.txt").read_text().split("\n\n$ ")[1:]
    (found,) = (block for block in blocks if block.startswith(f"{command}\n"))
    return found.strip().splitlines()[1:]


def test_capabilities_lie_where_the_driver_has_them(node: Node) -> None:
    folder, recorded = "", set()
    for line in printed("ls -R /proc/driver/nvidia/capabilities /proc/driver/nvidia-caps"):
        if line.endswith(":"):
            folder = line.removesuffix(":")
        elif line:
            recorded.add(f"{folder}/{line}")
    proc = node.root / "proc/driver"
    found = [*(proc / "nvidia/capabilities").rglob("*"), *(proc / "nvidia-caps").iterdir()]
    assert {f"/{path.relative_to(node.root)}" for path in found} == recorded


@pytest.mark.parametrize("name", ["config", "monitor"])
def test_the_two_capabilities_of_mig_as_a_whole_have_the_numbers_and_modes_of_the_driver(node: Node, name: str) -> None:
    path = f"/proc/driver/nvidia/capabilities/mig/{name}"
    assert (node.root / path[1:]).read_text().splitlines() == printed(f"cat {path}")


def test_minors_of_instances_are_counted_as_the_driver_counts_them(node: Node) -> None:
    recorded = printed("head -n 30 /proc/driver/nvidia-caps/mig-minors")
    assert (node.root / "proc/driver/nvidia-caps/mig-minors").read_text().splitlines()[:30] == recorded


def test_module_parameters_that_are_shown_have_the_drivers_values_in_its_order(node: Node) -> None:
    """But for one, which whoever sets up the machine chooses."""
    text = (node.root / "proc/driver/nvidia/params").read_text()
    shown = text.replace("ModifyDeviceFiles: 0", "ModifyDeviceFiles: 1").splitlines()
    assert [line for line in printed("cat /proc/driver/nvidia/params") if line in shown] == shown


def test_the_driver_registers_the_device_names_that_it_does_on_a_real_machine(node: Node) -> None:
    text = (node.root / "proc/devices").read_text()
    shown = {tuple(line.split()) for line in text.splitlines() if " nvidia" in line}
    recorded = {tuple(line.split()) for line in printed("cat /proc/devices")}
    assert {name for _, name in shown} == {name for _, name in recorded}
    assert {pair for pair in shown if pair[0] == "195"} == {pair for pair in recorded if pair[0] == "195"}


def test_device_nodes_are_those_of_a_real_machine(node: Node) -> None:
    lines = [f"/dev/nvidia-caps/{line.split()[-1]} {line}" for line in printed("ls -l /dev/nvidia-caps")]
    lines += [f"{line.split()[-1]} {line}" for line in printed("ls -l /dev/nvidia*")]
    recorded = {path: (mode, int(minor)) for path, mode, _, minor, _ in (line.split() for line in lines)}
    found = [path for path in (node.root / "dev").rglob("*") if not path.is_dir()]
    assert {f"/{path.relative_to(node.root)}" for path in found} == recorded.keys()
    if os.geteuid() == 0:  # who may not make device nodes gets plain files
        for path in found:
            status = path.stat()
            expected = recorded[f"/{path.relative_to(node.root)}"]
            assert (stat.filemode(status.st_mode), os.minor(status.st_rdev)) == expected
