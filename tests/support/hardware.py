"""The simulated hardware of one node, from outside: what it holds, and what goes wrong with it."""

import re
from dataclasses import dataclass
from pathlib import Path

from tests.support.cluster import ROOT, Cluster, run


@dataclass(frozen=True)
class Simulator:
    """`hack/simulator` on the driver root of a node."""

    cluster: Cluster
    node: str

    @property
    def root(self) -> Path:
        return self.cluster.state / "nodes" / self.node / "driver"

    def show(self) -> str:
        return run([ROOT / "hack" / "simulator", "show", "--root", self.root])

    def instances(self) -> list[str]:
        """One line per GPU instance, with its compute instance."""
        return [line.strip() for line in self.show().splitlines() if re.match(r"\s+GI \d", line)]

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

    def reset(self) -> None:
        """Every GPU is reset: no instances, no faults."""
        run([ROOT / "hack" / "simulator", "reset", "--root", self.root])
