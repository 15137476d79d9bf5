"""Loading the kernel module amdgpu on the node: the node's own `modprobe`, which knows its kernel and its options."""

import subprocess
from typing import Final

from api.errors import HardwareError
from kubeletplugin.hardware.amd_sysfs import AmdRoot

_MODULE: Final = "amdgpu"
_PATH: Final = "/usr/sbin:/usr/bin:/sbin:/bin"
_LIMIT_S: Final = 300.0  # eight GPUs take a minute and more


def load_module(root: AmdRoot) -> None:
    """Nothing happens where it is loaded. Raises HardwareError."""
    try:
        done = subprocess.run(
            ["chroot", str(root.seen), "modprobe", _MODULE],
            env={"PATH": _PATH},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HardwareError(f"the amdgpu driver could not be loaded: {error}") from error
    if done.returncode:
        raise HardwareError(
            f"the amdgpu driver could not be loaded (modprobe under {root.seen}, exit {done.returncode}): "
            f"{done.stderr.strip()}; load it by hand"
        )
