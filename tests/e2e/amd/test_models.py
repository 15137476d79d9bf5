"""Every model in every mode that it can be brought into: what a container sees is what its claim got."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest

import pytest

from tests.e2e.amd.helpers import (
    PCI_BUS_ID,
    PROFILES,
    AmdNode,
    amd_request,
    check_view,
    mode_name,
    mode_pod,
    nodes_told,
)
from tests.support.chart import Release
from tests.support.cluster import Cluster
from tests.support.manifests import claim_template
from tests.support.workload import Workspace

GPUS = 4  # of a node: one for each mode that can be had under one memory mode


@dataclass(frozen=True)
class Model:
    compute_units: int
    modes: dict[str, dict[str, int]]
    """Partitions by memory mode and compute mode."""


EIGHT = {"spx": 1, "dpx": 2, "qpx": 4, "cpx": 8}
MODELS = {
    "mi300x": Model(304, {"nps1": EIGHT, "nps2": {"dpx": 2}, "nps4": {"qpx": 4, "cpx": 8}}),
    "mi325x": Model(304, {"nps1": EIGHT, "nps2": {"dpx": 2}, "nps4": {"qpx": 4, "cpx": 8}}),
    "mi308x": Model(80, {"nps1": {"spx": 1, "dpx": 2, "cpx": 4}, "nps4": {"cpx": 4}}),
    "mi350x": Model(256, {"nps1": EIGHT, "nps2": {"dpx": 2, "qpx": 4, "cpx": 8}}),
    "mi355x": Model(256, {"nps1": EIGHT, "nps2": {"dpx": 2, "qpx": 4, "cpx": 8}}),
    "mi300a": Model(228, {"nps1": {"spx": 1, "tpx": 3, "cpx": 6}}),
    "mi210": Model(104, {}),
}
WHOLE = ("spx_nps1", None)
PAIRS = (("mi300x", "mi325x"), ("mi308x", "mi350x"), ("mi300a", "mi355x"))  # two nodes at a time


@pytest.fixture(scope="module")
def nodes(cluster: Cluster, release: Release) -> Iterator[tuple[AmdNode, AmdNode]]:
    pair = AmdNode(cluster, "n2"), AmdNode(cluster, "n4")
    yield pair
    for node in pair:
        node.install(PROFILES[node.name])


Units = dict[str | None, int]
"""Compute units of a partition, by mode."""


def waves_in(model: str, memory: str) -> list[Units]:
    """Modes that are asked for together. The first that needs another memory mode comes alone: it takes the node."""
    found = MODELS[model]
    units: Units = {f"{mode}_{memory}": found.compute_units // n for mode, n in found.modes.get(memory, {}).items()}
    alone = 0 if memory == "nps1" else 1
    first, rest = dict(list(units.items())[:alone]), dict(list(units.items())[alone:])
    return [wave for wave in (first, rest) if wave]


def check_containers(space: Workspace, node: AmdNode, pod: str, units: Units) -> None:
    """Of a `mode_pod`."""
    space.wait_running(pod)
    slots, given = node.slots(), set[int]()
    for mode, each in units.items():
        name = mode_name(mode)
        devices = space.devices(space.claim_of(pod, f"t-{name}"))
        assert len(devices) == (1 if mode in WHOLE else 2)
        renders = check_view(node, nodes_told(space, pod, name), devices)
        assert {slots[render].simd_units for render in renders} == {4 * each}, (pod, mode)
        assert not renders & given
        given |= renders


def apply_templates(space: Workspace, modes: Iterable[str | None]) -> None:
    """One for each mode: of a whole GPU, or of two partitions of one GPU."""
    for mode in sorted(modes, key=str):
        requests = [amd_request(mode, name=f"r{number}") for number in range(1 if mode in WHOLE else 2)]
        one_gpu = {"matchAttribute": PCI_BUS_ID, "requests": [request["name"] for request in requests]}
        space.apply(claim_template(mode_name(mode), space.namespace, *requests, constraints=(one_gpu,)))


@pytest.mark.parametrize("models", PAIRS, ids="-".join)
def test_containers_see_their_partitions_in_every_mode(
    models: tuple[str, str], space: Workspace, nodes: tuple[AmdNode, AmdNode]
) -> None:
    for node, model in zip(nodes, models, strict=True):
        node.install(f"{model}x{GPUS}")
    for memory in ("nps1", "nps2", "nps4"):
        pods = []
        waves = [waves_in(model, memory) for model in models]
        for number, wave in enumerate(zip_longest(*waves)):
            asked = [
                (node, f"{memory}-{number}-{node.name}", units)
                for node, units in zip(nodes, wave, strict=True)
                if units
            ]
            apply_templates(space, {mode for _, _, units in asked for mode in units})
            space.apply(*(mode_pod(space, name, node, tuple(units)) for node, name, units in asked))
            for node, name, units in asked:
                check_containers(space, node, name, units)
            pods += [name for _, name, _ in asked]
        space.delete(*pods)


def test_a_container_sees_its_gpu_of_a_model_without_partitions(
    space: Workspace, nodes: tuple[AmdNode, AmdNode]
) -> None:
    node = nodes[1]
    node.install(f"mi210x{GPUS}")
    apply_templates(space, (None,))
    space.apply(mode_pod(space, "any", node, (None,)))
    check_containers(space, node, "any", {None: MODELS["mi210"].compute_units})
