"""The kernel module amdgpu on the node, by the node's own `modprobe`, which knows its kernel and its options.

AMD SMI would call the `modprobe` of whoever loads it: an image has none, nor the node's modules.
"""

import subprocess
from typing import Final

from api.errors import HardwareError
from kubeletplugin.hardware.amd_sysfs import AmdRoot
from kubeletplugin.hardware.backend import DeviceBusy

_MODULE: Final = "amdgpu"
_PATH: Final = "/usr/sbin:/usr/bin:/sbin:/bin"
_NOT_RUN: Final = (125, 126, 127)  # chroot(1): it failed itself, the program cannot be run, or is not there
_LIMIT_S: Final = 300.0  # eight GPUs take a minute and more


def reload_module(root: AmdRoot) -> None:
    """Unload and load. Raises DeviceBusy where something uses it, or keeps it from being loaded; HardwareError."""
    refusal = _modprobe(root, "-r", _MODULE)
    if refusal:
        raise DeviceBusy(
            f"the amdgpu driver could not be unloaded, usually because a process uses it; monitoring agents that hold "
            f"/dev/kfd are the usual cause: {refusal}"
        )
    refusal = _modprobe(root, _MODULE)
    if refusal:
        raise DeviceBusy(f"the amdgpu driver was unloaded and could not be loaded again: {refusal}")


def load_module(root: AmdRoot) -> None:
    """Nothing happens where it is loaded. Raises HardwareError."""
    refusal = _modprobe(root, _MODULE)
    if refusal:
        raise HardwareError(f"the amdgpu driver could not be loaded: {refusal}; load it by hand")


def _modprobe(root: AmdRoot, *words: str) -> str:
    """Empty, or why it failed. Raises HardwareError where it cannot be run."""
    try:
        done = subprocess.run(
            ["chroot", str(root.seen), "modprobe", *words],
            env={"PATH": _PATH},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HardwareError(f"modprobe cannot be run under {root.seen}: {error}") from error
    if done.returncode in _NOT_RUN:
        raise HardwareError(
            f"modprobe cannot be run under {root.seen} (exit {done.returncode}): {done.stderr.strip()}; "
            "load amdgpu by hand, and see that the driver root is the node's own root"
        )
    return f"modprobe under {root.seen}, exit {done.returncode}: {done.stderr.strip()}" if done.returncode else ""
