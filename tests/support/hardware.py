"""The simulated hardware of one node, from outside: what it holds, and what goes wrong with it."""

import re
from dataclasses import dataclass
from pathlib import Path

from simulator.layout import open_state
from simulator.show import format_state, state_file

from tests.support.cluster import ROOT, Cluster, run

_GPU = re.compile(r"\s*(?P<minor>\d+)  \S+:\S+ +.* (?P<mig>on|off|n/a) ")
_INSTANCE = re.compile(r"\s+GI (?P<gi>\d+) +(?P<profile>\S+) +at (?P<start>\d+):\d+ +CI (?P<ci>\d+) \S+ (?P<uuid>\S+)")


@dataclass(frozen=True)
class Instance:
    """A GPU instance with its compute instance."""

    gpu: int
    gi: int
    ci: int
    profile: str
    start: int
    uuid: str


@dataclass(frozen=True)
class Simulator:
    """`hack/simulator` on the driver root of a node."""

    cluster: Cluster
    node: str

    @property
    def root(self) -> Path:
        return self.cluster.state / "nodes" / self.node / "driver"

    def show(self) -> str:
        """In this process: tests ask again and again, and a process for each would keep a core busy."""
        with open_state(state_file(self.root)) as state:
            return format_state(state)

    def instances(self) -> list[str]:
        """One line per GPU instance, with its compute instance."""
        return [line.strip() for line in self.show().splitlines() if re.match(r"\s+GI \d", line)]

    def layout(self) -> list[Instance]:
        """The finished instances of all GPUs."""
        gpu, found = -1, []
        for line in self.show().splitlines():
            if match := _INSTANCE.match(line):
                gi, ci, start = (int(match[name]) for name in ("gi", "ci", "start"))
                found.append(Instance(gpu, gi, ci, match["profile"], start, match["uuid"]))
            elif match := _GPU.match(line):
                gpu = int(match["minor"])
        return found

    def mig_modes(self) -> dict[int, str]:
        """`on` or `off` by minor number."""
        return {int(m["minor"]): m["mig"] for line in self.show().splitlines() if (m := _GPU.match(line))}

    def smi(self, *arguments: str) -> str:
        """What an admin types on the node."""
        return self.cluster.in_node(self.node, "/run/nvidia/driver/usr/bin/nvidia-smi", *arguments)

    def inject(self, *arguments: str) -> None:
        run([ROOT / "hack" / "simulator", "inject", "--root", self.root, *arguments])

    def fail(self, function: str, code: str = "unknown", times: int = 1_000_000) -> None:
        self.inject("fail", function, "--code", code, "--times", str(times))

    def slow(self, function: str, ms: int) -> None:
        self.inject("slow", function, "--ms", str(ms))

    def xid(self, minor: int, xid: int) -> None:
        self.inject("xid", "--gpu", str(minor), "--xid", str(xid))

    def work(self) -> None:
        """Calls work again; what the hardware holds stays."""
        self.inject("none")

    def mend(self) -> None:
        """The same, and no GPU is lost any more."""
        self.work()
        for minor in self._lost():
            self.inject("lost", "--gpu", str(minor), "--off")

    def _lost(self) -> list[int]:
        with open_state(state_file(self.root)) as state:
            return [gpu.fixed.minor for gpu in state.gpus[: state.gpu_count] if gpu.now.lost]

    def reset(self) -> None:
        """Every GPU is reset: no instances, no faults."""
        run([ROOT / "hack" / "simulator", "reset", "--root", self.root])
