"""Settings of the node plugin: environment variables with flag twins, frozen; reads nothing but what it is given.

`PARTITA_CRASH_AFTER=<step>` is for tests: the process ends with exit code 137 right after that durable step, one of
`intent`, `hardware`, `cdi`, `done` (prepare) and `undone`, `cdi_removed`, `removed` (unprepare).
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from api.errors import InvalidObject
from api.options import Endpoint, parse_bool, parse_choice, parse_endpoint, parse_level, parse_seconds

RELOAD_MARK: Final = "reloading"
"""In a driver's data directory: a reload of its kernel module has begun (`kubeletplugin.amd_reload`)."""
CRASH_STEPS: Final = ("intent", "hardware", "cdi", "done", "undone", "cdi_removed", "removed")


@dataclass(frozen=True, slots=True)
class Settings:
    """Defaults are those of a DaemonSet pod on an ordinary node."""

    node_name: str
    driver_root: str = "/"
    """Driver root as the host sees it; it is what CDI specs name."""
    driver_root_ctr_path: str = ""
    """The same directory as this process sees it."""
    amd_driver_root: str = ""
    amd_driver_root_ctr_path: str = ""
    """As the two above, of amdgpu and ROCm, where they are elsewhere than NVIDIA's driver."""
    cdi_root: str = "/var/run/cdi"
    kubelet_registrar_directory_path: str = "/var/lib/kubelet/plugins_registry"
    kubelet_plugins_directory_path: str = "/var/lib/kubelet/plugins"
    kubeconfig: str = ""
    http_endpoint: Endpoint | None = ("", 8080)
    """Of /metrics, /healthz and /readyz."""
    pod_uid: str = ""
    """Set for rolling updates: every instance then has sockets of its own."""
    pod_namespace: str = "default"
    drivers: str = "auto"
    """Comma list of driver names, or `auto`. Of several vendors', those whose hardware is on the node."""
    nvidia_cdi_hook_path: str = ""
    """On the host; empty to look for it under the driver root."""
    additional_xids_to_ignore: str = ""
    """Comma list of XID numbers."""
    amd_partitioning: str = "on-claim"
    """`on-claim`: a GPU is brought into the mode that a claim asks for; `static`: modes are an administrator's."""
    binding_conditions: bool = False
    """The scheduler binds a pod only when its ComputeDomain is formed (DRADeviceBindingConditions)."""
    rescan_interval_s: float = 3.0
    stale_claim_grace_s: float = 300.0
    """What a claim holds that is gone from the API server is given back after so long; its container may still run."""
    boot_id_path: str = "/proc/sys/kernel/random/boot_id"
    """File whose content differs after every boot of the node."""
    log_level: str = "INFO"
    partita_crash_after: str = ""

    @property
    def seen_driver_root(self) -> Path:
        return Path(self.driver_root_ctr_path or self.driver_root)

    @property
    def amd_root(self) -> tuple[str, Path]:
        """As the host names it, and as this process sees it."""
        if not self.amd_driver_root:
            return self.driver_root, self.seen_driver_root
        return self.amd_driver_root, Path(self.amd_driver_root_ctr_path or self.amd_driver_root)

    def data_directory(self, driver: str) -> Path:
        return Path(self.kubelet_plugins_directory_path) / driver


_HELP = {
    "node_name": "name of this node's Node object (required)",
    "driver_root": "root of the NVIDIA driver on the host",
    "driver_root_ctr_path": "the driver root as this process sees it; default: the same path",
    "amd_driver_root": "root of amdgpu and ROCm on the host; default: that of the NVIDIA driver",
    "amd_driver_root_ctr_path": "the same as this process sees it; default: the same path",
    "cdi_root": "directory of CDI specs",
    "kubelet_registrar_directory_path": "the kubelet's plugin registry directory",
    "kubelet_plugins_directory_path": "the kubelet's plugin data directory",
    "kubeconfig": "kubeconfig file; default: the pod's service account",
    "http_endpoint": "[address]:port of /metrics, /healthz, /readyz; empty for none",
    "pod_uid": "UID of this pod; set for rolling updates",
    "pod_namespace": "namespace of this pod",
    "drivers": "comma list of driver names, or auto",
    "nvidia_cdi_hook_path": "nvidia-cdi-hook on the host; default: looked for under the driver root",
    "additional_xids_to_ignore": "comma list of XIDs that are no fault of the GPU",
    "amd_partitioning": "on-claim or static: whether claims may change the partition mode of AMD GPUs",
    "binding_conditions": "true or false: whether pods are bound only when their ComputeDomain is formed",
    "rescan_interval_s": "seconds between two looks at the hardware",
    "stale_claim_grace_s": "seconds until what a claim holds that is gone from the API server is given back",
    "boot_id_path": "file with the id of the node's boot",
    "log_level": "DEBUG, INFO, WARNING or ERROR",
    "partita_crash_after": f"for tests: end right after a durable step, one of {', '.join(CRASH_STEPS)}",
}

_PARSERS: Final[dict[str, Callable[[str, str], Any]]] = {
    "http_endpoint": lambda name, text: parse_endpoint(name, text) if text else None,
    "amd_partitioning": partial(parse_choice, right=("on-claim", "static")),
    "binding_conditions": parse_bool,
    "rescan_interval_s": parse_seconds,
    "stale_claim_grace_s": parse_seconds,
    "log_level": parse_level,
    "partita_crash_after": lambda name, text: parse_choice(name, text, CRASH_STEPS) if text else "",
}
"""What is more than a text."""


def parse_settings(arguments: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """Flags win over environment variables, both over defaults. Raises InvalidObject; `--help` exits."""
    parser = argparse.ArgumentParser("partita-kubelet-plugin", description="DRA driver of this node's GPUs")
    for name, text in _HELP.items():
        parser.add_argument(f"--{name.replace('_', '-')}", help=f"{text} [{name.upper()}]")
    flags = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    given = {name: environment[name.upper()] for name in _HELP if environment.get(name.upper())} | flags
    if not given.get("node_name"):
        raise InvalidObject("NODE_NAME is not set: give the name of the Node object that this process runs on")
    values = {name: _PARSERS[name](name.upper(), text) if name in _PARSERS else text for name, text in given.items()}
    return Settings(**values)


def parse_xids(text: str) -> frozenset[int]:
    """`13,31` -> {13, 31}. Raises InvalidObject."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    wrong = [word for word in words if not word.isdigit()]
    if wrong:
        raise InvalidObject(f"ADDITIONAL_XIDS_TO_IGNORE: {wrong[0]!r} is not an XID number")
    return frozenset(int(word) for word in words)
