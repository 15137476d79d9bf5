"""The verbs for AMD hardware. Those that every node has pass on to NVIDIA's what is not AMD's."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from simulator import nvidia
from simulator.amd import node
from simulator.amd.models import MODELS, parse_profile

FAULTS: tuple[node.Fault, ...] = get_args(node.Fault)


def _option(arguments: list[str], name: str) -> str:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(f"--{name}", default="")
    return str(getattr(parser.parse_known_args(arguments)[0], name))


def run_install(arguments: list[str]) -> int:
    """AMD's part of the profile after NVIDIA's; a profile without AMD models is NVIDIA's alone."""
    parts = _option(arguments, "profile").split("+")
    ours = [part for part in parts if parse_profile(part)]
    if not ours:
        return nvidia.run_install(arguments)
    if len(ours) > 1:
        raise ValueError(f"--profile: one AMD model per node, not {' and '.join(ours)}")
    root = Path(_option(arguments, "root"))
    theirs = [part for part in parts if part not in ours]
    if theirs:
        nvidia.run_install([*_without(arguments, "profile"), "--profile", "+".join(theirs)])
    node.install(root, ours[0], index=int(_option(arguments, "index") or 0))
    if not theirs:
        print(root)
    return 0


def _without(arguments: list[str], name: str) -> list[str]:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(f"--{name}")
    return parser.parse_known_args(arguments)[1]


def _both(verb: str, ours: Callable[[Path], None]) -> Callable[[list[str]], int]:
    """NVIDIA's verb where the root has NVIDIA GPUs, ours where it has AMD's."""

    def run(arguments: list[str]) -> int:
        root = Path(_option(arguments, "root") or "/")
        has_amd = node.is_installed(root)
        status = 0
        if not has_amd or list((root / "usr/lib/x86_64-linux-gnu").glob("libnvidia-simulator.so.*")):
            status = nvidia.VERBS[verb][1](arguments)
        if has_amd:
            ours(root)
        return status

    return run


def show(root: Path) -> None:
    truth = node.describe(root)
    print(f"amdgpu {truth['driver']['version']}{'' if truth['driver']['loaded'] else ' (not loaded)'}")
    for number, gpu in enumerate(truth["gpus"]):
        mode = f"{gpu['compute_mode']}/{gpu['memory_mode']}" if gpu["compute_mode"] else "cannot be partitioned"
        notes = [f"asked for {gpu['requested_memory_mode']}"] if gpu["requested_memory_mode"] else []
        notes += ["busy"] if gpu["holder"] else []
        print(f"{number}  {gpu['pci']}  {gpu['product']:<24}  {mode:<22} renderD{gpu['render']}  {', '.join(notes)}")


def run_amd(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="simulator amd", description="Faults and the truth of simulated AMD GPUs.")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--hold", type=int, metavar="GPU", help="a process uses it; --pid names the process")
    parser.add_argument("--free", type=int, metavar="GPU", help="no process uses it")
    parser.add_argument("--pid", type=int, default=0)
    parser.add_argument("--set-modes", metavar="MODE", help="as an administrator: cpx_nps4 on every GPU")
    parser.add_argument("--reboot", type=int, metavar="CARD", help="like `reboot`; DRM minors then begin at this card")
    parser.add_argument("--load-driver", action="store_true", help="modprobe amdgpu")
    parser.add_argument("--kfd-links", action="store_true", help="show the links between KFD's nodes, which takes time")
    for fault in FAULTS:
        parser.add_argument(f"--{fault.replace('_', '-')}", type=int)
    given = parser.parse_args(arguments)
    if given.hold is not None:
        node.hold(given.root, given.hold, given.pid)
    if given.free is not None:
        node.hold(given.root, given.free, None)
    if given.set_modes:
        compute, _, memory = given.set_modes.upper().partition("_NPS")
        node.set_modes(given.root, compute, int(memory))
    if given.reboot is not None:
        node.reboot(given.root, first_card=given.reboot, kfd_major=node.KFD_MAJOR - 1)
    if given.load_driver:
        node.load_driver(given.root)
    if given.kfd_links:
        node.show_links(given.root)
    for fault in FAULTS:
        if getattr(given, fault) is not None:
            node.set_fault(given.root, fault, getattr(given, fault))
    print(json.dumps(node.describe(given.root), indent=2))
    return 0


def run_profiles(arguments: list[str]) -> int:
    status = nvidia.run_profiles(arguments)
    for name, model in MODELS.items():
        print(f"{name:<14} {model.gpus} x {model.product}")
    return status


VERBS = {
    "amd": ("faults of AMD GPUs, and their state as JSON", run_amd),
    "install": ("put simulated NVIDIA and AMD hardware below a driver root", run_install),
    "profiles": ("list the GPU models", run_profiles),
    "reboot": ("what a reboot of the node does to its GPUs", _both("reboot", node.reboot)),
    "show": ("print GPUs and instances of a simulated node", _both("show", show)),
}
