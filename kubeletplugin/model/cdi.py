"""CDI specs of prepared claims (github.com/cncf-tags/container-device-interface, SPEC.md)."""

import json
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any, Final

from api.errors import HardwareError, StateUnreadable
from api.names import CDI_CLAIM_CLASS, NVIDIA_CDI_VENDOR
from kubeletplugin.model.checkpoint import (
    ClaimRecord,
    MigHolding,
    PreparedDevice,
    record_from_json,
    record_to_json,
)
from kubeletplugin.model.inventory import Gpu, Inventory

CDI_VERSION: Final = "0.6.0"  # the first with annotations of specs
RECORD_ANNOTATION: Final = "partita/record"
"""Annotation of a spec: the claim's record as JSON, from which a lost checkpoint is rebuilt."""
CDI_KIND: Final = f"{NVIDIA_CDI_VENDOR}/{CDI_CLAIM_CLASS}"
_ENCODER: Final = json.JSONEncoder(separators=(",", ":"))  # json.dumps would make one at every call
_MOUNT_OPTIONS: Final = ["ro", "nosuid", "nodev", "bind"]
PLUGIN_FOLDERS: Final = ("vdpau", "gbm")
"""Below directories of libraries; what lies in them is loaded by its path."""
_LINKS, _COMPATIBILITY, _LOADER = "create-symlinks", "enable-cuda-compat", "update-ldcache"
LATER_HOOKS: Final = (_COMPATIBILITY, "disable-device-node-modification", "update-application-profile")
"""Commands that `nvidia-cdi-hook` has since 1.17.5, 1.18 and 1.20. Since 1.18 it passes over what it does not have.

An image's own, newer CUDA libraries are preferred where the driver can carry them; nobody in the container makes the
nodes of other GPUs; EGL lists the GPUs of the container only.
"""


@dataclass(frozen=True, slots=True)
class DeviceNode:
    """A character device."""

    path: str
    """As containers see it: `/dev/nvidia0`."""
    host_path: str
    """As the host sees it: `/run/nvidia/driver/dev/nvidia0`."""
    major: int
    minor: int


@dataclass(frozen=True, slots=True)
class DriverFile:
    """A regular file of the driver, which containers get at the same path."""

    path: str
    """Under the driver root, absolute: `/usr/lib/x86_64-linux-gnu/libcuda.so.575.57.08`."""
    links: tuple[str, ...] = ()
    """Paths of the symbolic links that end at it: `/usr/lib/x86_64-linux-gnu/libcuda.so.1`."""


@dataclass(frozen=True, slots=True, eq=False)
class DriverTree:
    """What a node's driver root holds. Paths on the host, not as the plugin's own container sees them.

    Read once and used for many claims: what all claims have in common is worked out once per tree.
    """

    root: str
    """Driver root on the host: `/` or `/run/nvidia/driver`."""
    dev_root: str
    """Directory on the host that holds `dev` with the nvidia nodes: the driver root, or `/`."""
    control_nodes: tuple[DeviceNode, ...] = ()
    """Of nvidiactl, nvidia-uvm, nvidia-uvm-tools, nvidia-modeset those that exist."""
    gpu_nodes: Mapping[int, tuple[DeviceNode, ...]] = field(default_factory=dict)
    """By minor number: `/dev/nvidia<minor>`."""
    display_nodes: Mapping[str, tuple[DeviceNode, ...]] = field(default_factory=dict)
    """By PCI bus id: `/dev/dri/card1`, `/dev/dri/renderD128`, where the driver has made them."""
    capabilities_major: int | None = None
    """Major number of `nvidia-caps` in `/proc/devices`; None where the driver has no MIG capabilities."""
    capability_minors: Mapping[str, int] = field(default_factory=dict)
    """`gpu0/gi1/access`, `gpu0/gi1/ci0/access` -> minor number (/proc/driver/nvidia-caps/mig-minors)."""
    libraries: tuple[DriverFile, ...] = ()
    searched: tuple[str, ...] = ()
    """Directories under the driver root in which libraries were looked for: `/usr/lib64`."""
    tools: tuple[str, ...] = ()
    """Paths under the driver root of nvidia-smi and the like that exist: `/usr/bin/nvidia-smi`."""
    configs: Mapping[str, str] = field(default_factory=dict)
    """By their path in containers, files under the driver root that Vulkan, EGL, OpenCL and OptiX ask for."""
    hook: str | None = None
    """Path on the host of `nvidia-cdi-hook`, or of `nvidia-ctk`; None where the host has neither."""
    later_hooks: tuple[str, ...] = ()
    """Which of LATER_HOOKS it may be asked for."""
    driver_version: str = ""
    loader_directories: tuple[str, ...] = ()
    """Where loaders of this machine's architecture look without being told: Debian's kin, Red Hat's kin."""

    def says_the_same_as(self, other: "DriverTree") -> bool:
        """Field by field. `==` is identity, which is quick where claims ask what they have in common."""
        return all(getattr(self, each.name) == getattr(other, each.name) for each in fields(self))


def cdi_file_name(vendor: str, claim_uid: str) -> str:
    """`k8s.gpu.nvidia.com-claim_<uid>.json`"""
    return f"{vendor}-{CDI_CLAIM_CLASS}_{claim_uid}.json"


def parse_mig_minors(text: str) -> dict[str, int]:
    """/proc/driver/nvidia-caps/mig-minors, lines `gpu0/gi1/ci0/access 4`. Raises ValueError."""
    pairs = (line.split() for line in text.splitlines() if line.strip())
    return {path: int(minor) for path, minor in pairs}


def parse_character_majors(text: str) -> dict[str, int]:
    """The `Character devices:` part of /proc/devices: name -> major. Raises ValueError."""
    body = text.partition("Character devices:")[2].partition("Block devices:")[0]
    pairs = (line.split(maxsplit=1) for line in body.splitlines() if line.strip())
    return {name: int(major) for major, name in pairs}


def check_libraries(tree: DriverTree, driver_version: str) -> str | None:
    """What is wrong where containers get devices and no CUDA; None where they get it."""
    if any(posixpath.basename(library.path).startswith("libcuda.so.") for library in tree.libraries):
        return None
    searched = ", ".join(tree.searched)
    return (
        f"driver root {tree.root} has no libcuda.so.{driver_version} in any of {searched}: containers that claim a GPU "
        f"get {len(tree.libraries)} of the driver's libraries, and CUDA does not run in them; right would be the root "
        "that the driver is in, or links to its libraries in one of these directories"
    )


def build_cdi_spec(record: ClaimRecord, inventory: Inventory, tree: DriverTree) -> dict[str, Any]:
    """The spec of one claim: what every container needs, and one device for each of the claim's.

    Applying it twice is harmless. Raises HardwareError where the driver root lacks a device node.
    """
    # Admins may have one device for several requests of a claim; CDI has each name once.
    by_name = {cdi_id.partition("=")[2]: device for device in record.devices for cdi_id in device.cdi_ids}
    return {
        "cdiVersion": CDI_VERSION,
        "kind": CDI_KIND,
        "annotations": {RECORD_ANNOTATION: _ENCODER.encode(record_to_json(record))},
        "containerEdits": common_edits(tree),
        "devices": [
            {
                "name": name,
                "containerEdits": {"deviceNodes": _device_nodes(record, device, inventory, tree)},
            }
            for name, device in by_name.items()
        ],
    }


def encode_cdi_spec(record: ClaimRecord, inventory: Inventory, tree: DriverTree) -> bytes:
    """`build_cdi_spec` as JSON. All but the claim's own part, some 6 KiB, is encoded once per driver tree."""
    spec = build_cdi_spec(record, inventory, tree)
    own = _encode({"annotations": spec["annotations"], "devices": spec["devices"]})
    return _encoded_common(tree) + b"," + own[1:]


@lru_cache(maxsize=2)
def _encoded_common(tree: DriverTree) -> bytes:
    """What the specs of all claims begin with, without the closing brace."""
    common = {"cdiVersion": CDI_VERSION, "kind": CDI_KIND, "containerEdits": common_edits(tree)}
    return _encode(common)[:-1]


def _encode(value: dict[str, Any]) -> bytes:
    return _ENCODER.encode(value).encode()


def read_record(spec: Mapping[str, Any]) -> ClaimRecord:
    """The record that `build_cdi_spec` put into a spec. Raises StateUnreadable."""
    try:
        return record_from_json(json.loads(spec["annotations"][RECORD_ANNOTATION]))
    except (KeyError, TypeError, ValueError) as error:
        raise StateUnreadable(f"the CDI spec's annotation {RECORD_ANNOTATION} holds no record: {error}") from error


@lru_cache(maxsize=2)
def common_edits(tree: DriverTree) -> dict[str, Any]:
    mounts: list[dict[str, Any]] = []
    for library in tree.libraries:
        mounts.extend(_mount(tree, library.path, path) for path in _container_paths(library, tree))
    mounts.extend(_mount(tree, tool, f"/usr/bin/{posixpath.basename(tool)}") for tool in tree.tools)
    mounts.extend(_mount(tree, path, place) for place, path in tree.configs.items())
    edits: dict[str, Any] = {"env": ["NVIDIA_VISIBLE_DEVICES=void"]}
    if tree.control_nodes:
        edits["deviceNodes"] = [node_edit(node) for node in tree.control_nodes]
    if mounts:
        edits["mounts"] = mounts
    if tree.hook is not None and tree.libraries:
        edits["hooks"] = _hooks(tree, tree.hook)
    return edits


def driver_program_edits(tree: DriverTree, programs: tuple[str, ...]) -> dict[str, Any]:
    """What a program of the driver's needs in a container that runs nothing else of its own.

    Each library is there once, where it is on the node, by the name that programs ask for; the loader is told of the
    folders. So no hook need run, containers of any distribution find them, and few files are to be made beforehand.
    """
    places = {
        f"{_below_usr(posixpath.dirname(library.path))}/{name}": library.path
        for library in tree.libraries
        for name in _wanted_names(library)
    }
    mounts = [_mount(tree, path, place) for place, path in places.items()]
    mounts += [
        _mount(tree, program, f"/usr/bin/{posixpath.basename(program)}")
        for program in dict.fromkeys((*programs, *tree.tools))
    ]
    edits: dict[str, Any] = {"env": ["NVIDIA_VISIBLE_DEVICES=void"]}
    if places:
        folders = dict.fromkeys(posixpath.dirname(place) for place in places)
        edits["env"].append(f"LD_LIBRARY_PATH={':'.join(folders)}")
    if tree.control_nodes:
        edits["deviceNodes"] = [node_edit(node) for node in tree.control_nodes]
    return {**edits, "mounts": mounts}


def _below_usr(path: str) -> str:
    """/lib and /lib64 are links to those below /usr in any image of this decade."""
    return f"/usr{path}" if path.split("/")[1] in ("lib", "lib64") else path


def _wanted_names(library: DriverFile) -> list[str]:
    """`libcuda.so.1`; of a library without links its own name; `libcuda.so` is for linking only."""
    links = dict.fromkeys(posixpath.basename(link) for link in library.links)
    return [name for name in links if not name.endswith(".so")] or [posixpath.basename(library.path)]


def _container_paths(library: DriverFile, tree: DriverTree) -> list[str]:
    """Where containers get a library. A hook makes the links there and tells the loader.

    Without one nobody does: the file is mounted under its links' names too, and in the directories where the loaders of
    other distributions than the driver's look, for images are of any.
    """
    if tree.hook is not None:
        return [library.path]
    paths = [library.path, *library.links]
    names = dict.fromkeys(posixpath.basename(path) for path in paths if not _is_found_by_path(path))
    paths += [f"{directory}/{name}" for directory in tree.loader_directories for name in names]
    return list(dict.fromkeys(_below_usr(path) for path in paths))


def _is_found_by_path(path: str) -> bool:
    return posixpath.basename(posixpath.dirname(path)) in PLUGIN_FOLDERS


def _mount(tree: DriverTree, path: str, container_path: str) -> dict[str, Any]:
    host_path = posixpath.join(tree.root, path.lstrip("/"))
    return {"hostPath": host_path, "containerPath": container_path, "options": _MOUNT_OPTIONS}


def _hooks(tree: DriverTree, hook: str) -> list[dict[str, Any]]:
    """The toolkit's hooks, as it orders them: the loader's cache comes after what it reads.

    nvidia-ctk has them as sub-commands.
    """
    name = posixpath.basename(hook)
    start = [name, "hook"] if name == "nvidia-ctk" else [name]
    links = [
        f"--link={posixpath.relpath(lib.path, posixpath.dirname(link))}::{link}"
        for lib in tree.libraries
        for link in lib.links
    ]
    calls: dict[str, list[str]] = {
        **({_LINKS: links} if links else {}),
        _COMPATIBILITY: [f"--host-driver-version={tree.driver_version}"],
        _LOADER: [f"--folder={folder}" for folder in sorted({posixpath.dirname(lib.path) for lib in tree.libraries})],
        **{command: [] for command in LATER_HOOKS if command != _COMPATIBILITY},
    }
    return [
        {"hookName": "createContainer", "path": hook, "args": [*start, command, *arguments]}
        for command, arguments in calls.items()
        if command not in LATER_HOOKS or command in tree.later_hooks
    ]


def node_edit(node: DeviceNode, permissions: str = "rw") -> dict[str, Any]:
    return {
        "path": node.path,
        "hostPath": node.host_path,
        "type": "c",
        "major": node.major,
        "minor": node.minor,
        "permissions": permissions,
    }


def _device_nodes(
    record: ClaimRecord, device: PreparedDevice, inventory: Inventory, tree: DriverTree
) -> list[dict[str, Any]]:
    holding = device.holding
    gpu = inventory.gpu(holding.gpu_uuid)
    nodes = tree.gpu_nodes.get(gpu.minor) if gpu else None
    if gpu is None or not nodes:
        where = posixpath.join(tree.dev_root, "dev", f"nvidia{gpu.minor}") if gpu else holding.gpu_uuid
        raise HardwareError(f"claim {record.claim}: device {device.device} has no device node ({where})")
    if isinstance(holding, MigHolding):
        return [node_edit(node) for node in (*nodes, *_capabilities(record, gpu, holding, tree))]
    return [node_edit(node) for node in (*nodes, *tree.display_nodes.get(gpu.pci_bus_id, ()))]


def _capabilities(record: ClaimRecord, gpu: Gpu, holding: MigHolding, tree: DriverTree) -> list[DeviceNode]:
    """The nodes that open a GPU instance and its compute instance to whoever holds them."""
    instance = f"gpu{gpu.minor}/gi{holding.gpu_instance_id}"
    nodes = []
    for capability in (f"{instance}/access", f"{instance}/ci{holding.compute_instance_id}/access"):
        minor = tree.capability_minors.get(capability)
        if minor is None or tree.capabilities_major is None:
            raise HardwareError(f"claim {record.claim}: the driver lists no MIG capability {capability} in mig-minors")
        path = f"/dev/nvidia-caps/nvidia-cap{minor}"
        host_path = posixpath.join(tree.dev_root, path.lstrip("/"))
        nodes.append(DeviceNode(path, host_path, tree.capabilities_major, minor))
    return nodes
