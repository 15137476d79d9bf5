"""What the NVIDIA driver offers to IMEX on a node: device numbers under /proc, and its programs."""

import re
from pathlib import PurePosixPath
from typing import Final

from kubeletplugin.hardware.tree import DriverRoot, find_tools, read_text
from kubeletplugin.model.cdi import DeviceNode, parse_character_majors
from kubeletplugin.model.channels import ImexNodes

_MANAGEMENT: Final = "driver/nvidia/capabilities/fabric-imex-mgmt"
_PROGRAMS: Final = ("nvidia-imex", "nvidia-imex-ctl")
_MINOR: Final = re.compile(r"^DeviceFileMinor:\s*(\d+)", re.MULTILINE)


def read_imex_nodes(root: DriverRoot) -> ImexNodes:
    """Cheap: two small files and a few look-ups. A driver without IMEX gives none of it."""
    proc = root.proc()
    majors = parse_character_majors(read_text(proc / "devices"))
    capability = _MINOR.search(read_text(proc / _MANAGEMENT))
    management = None
    if capability and "nvidia-caps" in majors:
        path = f"/dev/nvidia-caps/nvidia-cap{capability.group(1)}"
        host_dev = root.host if root.has_own_devices() else "/"
        host_path = str(PurePosixPath(host_dev, path.lstrip("/")))
        management = DeviceNode(path, host_path, majors["nvidia-caps"], int(capability.group(1)))
    return ImexNodes(
        channel_major=majors.get("nvidia-caps-imex-channels"),
        management=management,
        programs=find_tools(root.seen, _PROGRAMS),
    )
