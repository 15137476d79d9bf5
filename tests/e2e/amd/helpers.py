"""AMD nodes of a cluster, from outside: what the hardware is, what a container sees of it, what is asked of a node."""

import json
import os
import re
import signal
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.cluster import ROOT, Object, path, run, wait_until
from tests.support.kaiwo_node import KaiwoNode
from tests.support.manifests import IDLE, IMAGE, pod, request
from tests.support.workload import RESOURCE, Device, Workspace

PROFILES = {"n1": "h100x1", "n2": "mi300xx8", "n3": "h100x1+mi300xx1", "n4": "mi300xx2"}
AMD_NODES = ("n2", "n3", "n4")
STATIC_PODS = "/etc/kubernetes/manifests"
SYSTEM = "partita-system"
CLASS = "gpu.amd.com"
KAIWO = "kaiwo.silogen.ai/v1alpha1"
ENABLED = "kaiwo.silogen.ai/node.amd.partitioning.enabled"
PROFILE = "kaiwo.silogen.ai/node.amd.partitioning.profile"
POLICY = "partita/amd-partitioning"
DCM_PROFILE = "dcm.amd.com/gpu-config-profile"
DCM_STATE = "dcm.amd.com/gpu-config-profile-state"
CONFIG_MAP = path("v1", "configmaps", namespace="kube-amd-gpu", name="config-manager-config")
MODES = ("spx_nps1", "dpx_nps1", "qpx_nps1", "cpx_nps1", "dpx_nps2", "qpx_nps4", "cpx_nps4")  # of an MI300X
PCI_BUS_ID = "resource.kubernetes.io/pciBusID"
PATIENCE_S = 120.0


@dataclass(frozen=True)
class Slot:
    """One partition, as KFD has it."""

    pci: str
    index: int
    simd_units: int


class AmdNode(KaiwoNode):
    @property
    def root(self) -> Path:
        return self.cluster.state / "nodes" / self.name / "driver"

    def simulate(self, *arguments: str) -> Object:
        """`hack/simulator amd`; the truth about the hardware afterwards."""
        truth: Object = json.loads(run([ROOT / "hack" / "simulator", "amd", "--root", self.root, *arguments]))
        return truth

    def install(self, profile: str) -> None:
        """Other GPUs instead of those that are there; the driver has published them afterwards."""
        place = ("--root", self.root, "--node", self.name, "--index", str(int(self.name[1:]) - 1))
        run([ROOT / "hack" / "simulator", "install", *place, "--profile", profile])
        self.wait_gpus(profile)

    def wait_gpus(self, profile: str) -> None:
        product = (self.root / "sys/bus/pci/devices/0000:05:00.0/product_name").read_text().strip().replace(" ", "_")
        gpus = int(profile.rpartition("x")[2])
        wait_until(f"{self.name} offers {gpus} {product}", lambda: self.gpus_published() == {product: gpus})

    def slots(self) -> dict[int, Slot]:
        """By render minor, from KFD's topology."""
        found = {}
        for file in (self.root / "sys/class/kfd/kfd/topology/nodes").glob("*/properties"):
            lines = (line.split() for line in file.read_text().splitlines())
            values = {line[0]: int(line[1]) for line in lines if len(line) == 2 and line[1].isdigit()}
            if values.get("simd_count"):
                place = values["location_id"]
                pci = f"{values['domain']:04x}:{place >> 8 & 0xFF:02x}:00.0"
                found[values["drm_render_minor"]] = Slot(pci, place & 7, values["simd_count"])
        return found

    def modes(self) -> dict[str, str]:
        """`cpx_nps4` by PCI address, from sysfs."""
        found = {}
        for folder in (self.root / "sys/bus/pci/devices").glob("*"):
            compute, memory = folder / "current_compute_partition", folder / "current_memory_partition"
            if compute.exists():
                found[folder.name] = f"{compute.read_text().strip()}_{memory.read_text().strip()}".lower()
        return found

    def has_driver(self) -> bool:
        """Whether amdgpu is loaded."""
        return (self.root / "sys/module/amdgpu").exists()

    def wait_phase(self, *phases: str, profile: str | None = None, patience_s: float = PATIENCE_S) -> Object:
        """Of the KaiwoNode; `profile` is the one that has been, or is being, applied."""

        def there(kaiwo: Object) -> bool:
            status = kaiwo.get("status", {}).get("partitioning", {})
            key = "appliedProfile" if status.get("phase") == "Completed" else "targetProfile"
            return status.get("phase", "") in phases and profile in (None, status.get(key))

        what = f"{self.name} is {' or '.join(phases)} {profile or ''}"
        return self.cluster.wait(self.kaiwo, what, there, patience_s)

    def wait_partitioned(self, profile: str) -> None:
        """Completed, the hardware is so, no taint is left."""
        self.wait_phase("Completed", profile=profile)
        mode = {"cpx": "cpx_nps4", "spx": "spx_nps1"}.get(profile, profile)
        assert set(self.modes().values()) == {mode}
        wait_until(f"{self.name} is untainted", lambda: not self.taints())
        wait_until(f"{self.name} publishes {mode}", lambda: set(self.published()) == {mode})

    def published(self) -> list[str]:
        """Partition profiles of the devices in the node's slices."""
        return [
            str(attributes.get("partitionProfile", {}).get("string", "")) for attributes in self.published_attributes()
        ]

    def present(self) -> set[str]:
        """Partition profiles that the slices of a node that partitions on claim mark as those of its GPUs."""
        marked = [each for each in self.published_attributes() if each.get("isPresent", {}).get("bool")]
        return {each["partitionProfile"]["string"] for each in marked}

    def gpus_published(self) -> dict[str, int]:
        """How many GPUs there are in the node's slices, by model."""
        found = {(each["productName"]["string"], each[PCI_BUS_ID]["string"]) for each in self.published_attributes()}
        return dict(Counter(product for product, _ in found))

    def published_attributes(self) -> list[Object]:
        """Of the devices in the node's slices."""
        slices = self.cluster.list(path(RESOURCE, "resourceslices"), fieldSelector=f"spec.driver={CLASS}")
        own = [piece for piece in slices if piece["spec"].get("nodeName") == self.name]
        newest = max((piece["spec"]["pool"]["generation"] for piece in own), default=0)
        return [
            device["attributes"]
            for piece in own
            if piece["spec"]["pool"]["generation"] == newest
            for device in piece["spec"].get("devices", ())
        ]

    def kill_plugin(self) -> None:
        """SIGKILL to the node plugin; the kubelet starts it again. What the kernel was doing for it, it finishes."""
        os.kill(wait_until(f"the plugin on {self.name} runs", self._find_plugin), signal.SIGKILL)
        self.simulate()

    def _find_plugin(self) -> int | None:
        """Its pid on this machine: the process in the control group of the node's pod."""
        pods = self.cluster.list(path("v1", "pods", namespace=SYSTEM), fieldSelector=f"spec.nodeName={self.name}")
        groups = [f"/pod{pod['metadata']['uid']}/" for pod in pods]
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                is_plugin = "partita-kubelet-plugin" in (folder / "cmdline").read_text()
                if is_plugin and any(group in (folder / "cgroup").read_text() for group in groups):
                    return int(folder.name)
            except (FileNotFoundError, ProcessLookupError):
                continue  # a process that ended meanwhile
        return None


def end_partitioning(node: AmdNode) -> None:
    """Nothing is asked of the node any more; its KaiwoNode begins anew, and the GPUs are in SPX again."""
    node.simulate("--reload-pause-ms", "0", "--change-pause-ms", "0")
    node.cluster.patch(node.where, {"metadata": {"labels": dict.fromkeys((ENABLED, PROFILE, DCM_PROFILE, DCM_STATE))}})
    if node.cluster.find(node.kaiwo):
        node.cluster.patch(node.kaiwo, {"spec": {"partitioning": {"enabled": False, "profile": ""}}})
        node.wait_phase("", "Completed", "Error")
        node.cluster.delete(node.kaiwo)
    node.wait_phase("")
    wait_until(f"{node.name} is untainted", lambda: not node.taints())
    node.simulate("--set-modes", "spx_nps1")
    wait_until(f"{node.name} partitions on claim", lambda: len(set(node.published())) == len(MODES), 60.0)
    wait_until(f"{node.name} shows that it is in SPX", lambda: node.present() == {"spx_nps1"})


def amd_request(profile: str | None = None, name: str = "gpu", **fields: Any) -> Object:
    cel = f"device.attributes['{CLASS}'].partitionProfile == '{profile}'" if profile else None
    return request(name, CLASS, cel=cel, **fields)


def claiming_pod(space: Workspace, name: str, node: str | None, template: str, **spec: Any) -> Object:
    return pod(name, space.namespace, templates=(template,), node=node, **spec)


def mode_name(mode: str | None) -> str:
    """Of the claim template and the container for a mode; None for a GPU that has none."""
    return mode.replace("_", "-") if mode else "any"


def mode_pod(space: Workspace, name: str, node: AmdNode, modes: Sequence[str | None]) -> Object:
    """A container for each mode, with a claim of its own from the mode's template; it tells in its log what it sees."""
    names = [mode_name(mode) for mode in modes]
    body = pod(name, space.namespace, templates=tuple(names), node=node.name)
    spec = body["spec"]
    look = ["sh", "-c", f"find /dev -type c; echo seen; {IDLE}"]
    spec["containers"] = [
        {"name": each, "image": IMAGE, "command": look, "resources": {"claims": [{"name": f"t-{each}"}]}}
        for each in names
    ]
    return body


def nodes_told(space: Workspace, name: str, container: str) -> set[str]:
    """Paths of the AMD device nodes that a container of `mode_pod` has seen when it began."""

    def told() -> str | None:
        text = str(space.cluster.get(f"{space.pods(name)}/log?container={container}").get("message", ""))
        return text if "seen" in text.splitlines() else None

    return _amd_nodes(wait_until(f"{name}/{container} has told what it sees", told))


def _amd_nodes(text: str) -> set[str]:
    return set(re.findall(r"^/dev/(?:kfd|dri/\S+)$", text, re.MULTILINE))


def nodes_seen(space: Workspace, name: str, container: str = "c0") -> set[str]:
    """Paths of the AMD device nodes in the container."""

    text = space.cluster.in_pod(name, "find", "/dev", "-type", "c", namespace=space.namespace, container=container)
    return _amd_nodes(text)


def check_view(node: AmdNode, seen: set[str], devices: Sequence[Device]) -> set[int]:
    """Asserts that a container sees exactly partitions of the GPUs and in the modes that it was allocated.

    Returns the render minors, which no other claim may have.
    """
    renders = {int(name.rpartition("renderD")[2]) for name in seen if "renderD" in name}
    cards = [name for name in seen if "/card" in name]
    slots, modes = node.slots(), node.modes()
    assert "/dev/kfd" in seen
    assert len(cards) == len(renders) == len(devices)
    got = sorted((slots[render].pci, modes.get(slots[render].pci)) for render in renders)
    assert got == sorted((device.text(PCI_BUS_ID), device.find("partitionProfile")) for device in devices)
    return renders


def start_guarded(space: Workspace, node: AmdNode) -> None:
    """A pod on the node that its budget lets nobody evict."""
    guarded = pod("guarded", space.namespace, node=node.name)
    guarded["metadata"]["labels"] = {"app": "guarded"}
    budget = {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": "guarded", "namespace": space.namespace},
        "spec": {"maxUnavailable": 0, "selector": {"matchLabels": {"app": "guarded"}}},
    }
    space.apply(budget, guarded)
    space.wait_running("guarded")


def unguard(space: Workspace) -> None:
    space.cluster.delete(path("policy/v1", "poddisruptionbudgets", namespace=space.namespace, name="guarded"))


def event_reasons(node: AmdNode) -> set[str]:
    """Of the Events about the KaiwoNode, which is another one in every test."""
    uid = node.cluster.get(node.kaiwo)["metadata"]["uid"]
    events = node.cluster.list(path("events.k8s.io/v1", "events"))
    return {str(each["reason"]) for each in events if each.get("regarding", {}).get("uid") == uid}


def profiles_config(**profiles: tuple[str, str, int | None]) -> Object:
    """The ConfigMap with these profiles: compute mode, memory mode, number of GPUs."""
    content = {
        name: {
            "skippedGPUs": {"ids": []},
            "profiles": [
                {
                    "computePartition": compute,
                    "memoryPartition": memory,
                    **({} if count is None else {"numGPUsAssigned": count}),
                }
            ],
        }
        for name, (compute, memory, count) in profiles.items()
    }
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "config-manager-config", "namespace": "kube-amd-gpu"},
        "data": {"config.json": json.dumps({"gpu-config-profiles": content})},
    }
