"""One node with AMD GPUs for an integration test: as `tests.support.plugin_world`, on simulated GPUs of AMD."""

import functools
import json
from typing import Any

from api.names import AMD_GPU_DRIVER
from tests.support.cluster import ROOT, run
from tests.support.plugin_world import NodeWorld, world
from tests.support.scenario import Scenario, play_in


class AmdWorld(NodeWorld):
    def simulate(self, *arguments: str) -> Any:
        """`hack/simulator amd`; the truth about the hardware afterwards."""
        return json.loads(run([ROOT / "hack" / "simulator", "amd", "--root", self.node.driver_root, *arguments]))

    def modes(self) -> list[str]:
        """`cpx_nps4` of every GPU, and where another memory mode is asked for: `spx_nps1 -> nps4`."""
        found = []
        for gpu in self.simulate()["gpus"]:
            pending = f" -> {gpu['requested_memory_mode']}" if gpu["requested_memory_mode"] else ""
            found.append(f"{gpu['compute_mode']}_{gpu['memory_mode']}{pending}".lower())
        return found


def in_amd_world(profile: str = "mi300xx2") -> Scenario:
    """For a test `async def test_...(it: AmdWorld, <parameters>)`: a node of this profile for it alone."""
    return play_in(functools.partial(world, kind=AmdWorld, profile=profile, driver=AMD_GPU_DRIVER), "control_plane")
