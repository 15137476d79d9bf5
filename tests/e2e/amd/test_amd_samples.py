"""Every sample, among them one for each of AMD's driver: it runs, and its containers see their claim's devices."""

import yaml

from tests.e2e.amd.helpers import PCI_BUS_ID, AmdNode, check_view, nodes_seen
from tests.support.cluster import ROOT, Cluster
from tests.support.workload import Workspace, claims_of

SAMPLES = ROOT / "deployments/samples/amd"
# What wants a mode of its own comes before what takes any: a GPU that is used keeps its mode, a node its memory mode.
FIRST = ("extended-resource.yaml", "gpu-by-modes.yaml", "partition.yaml", "partition-by-modes.yaml")


def start(space: Workspace, sample: str) -> list[str]:
    """The names of its pods."""
    text = (SAMPLES / sample).read_text()
    space.cluster.kubectl("apply", "--namespace", space.namespace, "--filename", "-", text=text)
    return [each["metadata"]["name"] for each in yaml.safe_load_all(text) if each["kind"] == "Pod"]


def check_pod(space: Workspace, name: str, given: dict[str, set[tuple[str, int]]]) -> int:
    """On how many GPUs its devices are. `given`: by claim, nodes and render minors."""
    pod = space.cluster.get(space.pods(name))
    node = AmdNode(space.cluster, pod["spec"]["nodeName"])
    parents = set()
    for container in pod["spec"]["containers"]:
        ((claim, _),) = claims_of(pod, container)
        devices = space.devices(claim)
        renders = check_view(node, nodes_seen(space, name, container["name"]), devices)
        seen = {(node.name, render) for render in renders}
        assert given.setdefault(claim, seen) == seen, "whoever shares a claim sees the same"
        parents |= {device.text(PCI_BUS_ID) for device in devices}
    return len(parents)


def test_every_sample_runs_and_its_containers_see_exactly_their_devices(
    cluster: Cluster, space: Workspace, n2: AmdNode, n3: AmdNode
) -> None:
    pods: dict[str, list[str]] = {}
    for sample in FIRST:
        pods[sample] = start(space, sample)
        space.wait_running(*pods[sample])
    for file in sorted(SAMPLES.glob("*.yaml")):
        if file.name not in FIRST:
            pods[file.name] = start(space, file.name)
    given: dict[str, set[tuple[str, int]]] = {}
    for sample, names in pods.items():
        space.wait_running(*names)
        parents = [check_pod(space, name, given) for name in names]
        assert set(parents) == {2 if "distinct" in sample else 1}, sample
    seen = [each for minors in given.values() for each in minors]
    assert len(seen) == len(set(seen)), "no two claims have one partition"
