"""`simulator show`: the GPUs and instances of a simulated node, as a table."""

import argparse
from pathlib import Path

from simulator import tree
from simulator.compile import DRIVER_VERSION
from simulator.layout import ALWAYS, WHOLE_GPU, Gpu, State, open_state


def state_file(root: Path) -> Path:
    """Raises ValueError where no simulated node is installed below `root`."""
    path = tree.state_path(root.resolve(), DRIVER_VERSION)
    if not path.exists():
        raise ValueError(f"{root} holds no simulated node; `simulator install --root {root} --profile h100` makes one")
    return path


def show(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="simulator show", description=__doc__)
    parser.add_argument("--root", type=Path, required=True)
    options = parser.parse_args(arguments)
    with open_state(state_file(options.root)) as state:
        print(format_state(state))
    return 0


def format_state(state: State) -> str:
    lines = [f"node {state.node.decode()}, profile {state.spec.decode()}, driver {state.driver_version.decode()}", ""]
    row = "{:>5}  {:<13} {:<34} {:<8} {:<6} {}"
    lines.append(row.format("MINOR", "PCI", "MODEL", "MIG", "CLIQUE", "STATE"))
    for gpu in state.gpus[: state.gpu_count]:
        now = gpu.now
        clique = str(now.fabric_clique) if any(now.fabric_cluster) else "-"
        notes = ["absent"] if now.absent else ["lost"] if now.lost else []
        notes += [f"process {p.pid} in {_where(p)}" for p in now.processes[: now.process_count]]
        fixed = gpu.fixed
        lines.append(
            row.format(
                fixed.minor, tree.bus_id(fixed), fixed.name.decode(), _mode(gpu), clique, ", ".join(notes) or "ok"
            )
        )
        lines += _instances(gpu)
    faults = [fault for fault in state.faults if fault.function]
    lines += ["", *(f"fault: {_fault(fault)}" for fault in faults)] if faults else []
    return "\n".join(lines)


def _mode(gpu: Gpu) -> str:
    words = {0: "off", 1: "on"}
    now = gpu.now
    pending = "" if now.mig_pending == now.mig_current else f"->{words[now.mig_pending]}"
    return words[now.mig_current] + pending


def _where(process: object) -> str:
    instance = getattr(process, "gpu_instance", WHOLE_GPU)
    return "the GPU" if instance == WHOLE_GPU else f"GI {instance}"


def _instances(gpu: Gpu) -> list[str]:
    lines = []
    for number, instance in enumerate(gpu.now.instances):
        if not instance.used:
            continue
        profile = gpu.fixed.profiles[instance.profile]
        computes = [(index, ci) for index, ci in enumerate(instance.compute) if ci.used]
        text = f"{'':7}GI {number:<3} {profile.name.decode():<13} at {instance.start}:{profile.size}"
        lines += [f"{text}  CI {index} ({ci.slices}c) {ci.uuid.decode()}" for index, ci in computes]
        lines += [] if computes else [f"{text}  without compute instance"]
    return lines


def _fault(fault: object) -> str:
    function, skip = fault.function.decode(), fault.skip  # type: ignore[attr-defined]
    remaining, code, delay = fault.remaining, fault.code, fault.delay_us  # type: ignore[attr-defined]
    times = "every call" if remaining == ALWAYS else f"{remaining} calls"
    effect = f"returns {code}" if code else "goes on"
    return f"{function}: after {skip} calls, {times}: waits {delay / 1000:g} ms and {effect}"
