"""`simulator install`: simulated NVIDIA hardware below a driver root."""

import argparse
import fcntl
import os
import uuid
from pathlib import Path

from simulator import tree
from simulator.build import LIBRARY, STATE_STUB, build
from simulator.compile import DRIVER_VERSION, compile_state
from simulator.layout import State, open_state, write_new
from simulator.models import parse_spec


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="simulator install", description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="driver root, e.g. /run/nvidia/driver")
    parser.add_argument("--profile", required=True, help="h100, h100x2, a100-40x4+h100x4, gb200:clique=2, none")
    parser.add_argument("--node", default=os.uname().nodename, help="GPU UUIDs derive from it")
    parser.add_argument("--index", type=int, default=0, help="number of the node: racks of 18 share a fabric")
    parser.add_argument("--clique", type=int, help="fabric clique of every GPU that has a fabric")
    parser.add_argument("--artefacts", type=Path, help="folder made by `simulator build` (default: build now)")
    parser.add_argument("--force", action="store_true", help="replace another profile or an unreadable state")
    return parser.parse_args(arguments)


def check_no_real_driver(root: Path) -> None:
    """Raises ValueError where a real driver is on this machine or below `root`."""
    if tree.SHOWN_VERSION.exists() and not tree.is_simulated():
        raise ValueError(
            f"this machine has a real NVIDIA driver ({tree.SHOWN_VERSION}); simulated hardware is refused here"
        )
    for library in sorted((root / tree.LIBRARIES).glob(f"{LIBRARY}*")):
        if library.exists() and b"nvidia-simulator" not in library.read_bytes():
            raise ValueError(f"{library} is a real NVIDIA library; simulated hardware is refused here")


def install(options: argparse.Namespace) -> str:
    """Returns one line that says what was done. Raises ValueError."""
    root = options.root.resolve()
    spec = options.profile
    groups = parse_spec(spec)
    check_no_real_driver(root)
    if not groups:
        return f"{root}: no NVIDIA hardware (profile none)"
    if options.clique is not None:
        groups = tuple(type(group)(group.model, group.count, options.clique, group.cluster) for group in groups)
        spec = f"{spec} --clique {options.clique}"
    artefacts = options.artefacts or build()
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".simulator.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _install_locked(root, spec, groups, options, artefacts)


def _install_locked(root: Path, spec: str, groups: tuple, options: argparse.Namespace, artefacts: Path) -> str:  # type: ignore[type-arg]
    path = tree.state_path(root, DRIVER_VERSION)
    wanted = compile_state(spec, groups, options.node, options.index)
    kept = path.exists() and not options.force and _is_same(path, wanted)
    if path.exists() and not options.force and not kept:
        raise ValueError(
            f"{root} holds another simulated node (see `simulator show --root {root}`); --force replaces it"
        )
    tree.write_libraries(root, artefacts, DRIVER_VERSION)
    if kept:
        return f"{root}: {spec} was installed already; its instances are kept"
    tree.remove_hardware(root)
    majors = tree.choose_majors()
    wanted.install_id, wanted.root = str(uuid.uuid4()).encode(), str(root).encode()
    wanted.caps_major = majors["nvidia-caps"]
    tree.write_proc(root, wanted, majors)
    tree.write_sys(root, wanted)
    real_nodes = tree.write_dev(root, wanted, majors)
    wanted.plain_nodes = 0 if real_nodes else 1
    write_new(path, (artefacts / STATE_STUB).read_bytes(), wanted)
    tree.write_text(root / tree.MARKER, wanted.install_id.decode() + "\n")
    note = "" if real_nodes else " (device nodes are plain files: making real ones needs root)"
    return f"{root}: {wanted.gpu_count} GPUs, profile {spec}{note}"


def _is_same(path: Path, wanted: State) -> bool:
    """What is installed has the profile, node and model tables that are wanted now."""
    with open_state(path) as state:
        ours = (state.spec, state.node, state.gpu_count) == (wanted.spec, wanted.node, wanted.gpu_count)
        return ours and all(
            bytes(old.fixed) == bytes(new.fixed) for old, new in zip(state.gpus, wanted.gpus, strict=True)
        )
