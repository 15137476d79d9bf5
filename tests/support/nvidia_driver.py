"""NVIDIA's own DRA driver (sigs.k8s.io/dra-driver-nvidia-gpu) on one simulated node, in place of Partita's plugin."""

import fcntl
import hashlib
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
from bench.node import Node
from bench.objects import RESOURCE_API
from simulator.build import cache_folder

from api.client import path
from tests.support.plugin_world import NodeWorld

SOURCE = Path(__file__).parent / "nvidia-dra-driver"
MODULE = "sigs.k8s.io/dra-driver-nvidia-gpu"


@cache
def build(program: str) -> Path:
    """One of the driver's programs, built once into the cache. Skips the test where no module proxy has the driver."""
    go = shutil.which("go")
    assert go, "the Go toolchain is needed (hack/test fetches it)"
    fetched = subprocess.run([go, "mod", "download", MODULE], cwd=SOURCE, capture_output=True, text=True, check=False)
    if fetched.returncode:
        pytest.skip(f"NVIDIA's driver cannot be had here: {fetched.stderr.strip()}")
    version = hashlib.sha256((SOURCE / "go.sum").read_bytes()).hexdigest()[:12]
    target = cache_folder().parent / "bin" / f"nvidia-dra-driver-{version}" / program
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            unfinished = target.with_suffix(".unfinished")
            command = [go, "build", "-ldflags=-s -w", "-o", str(unfinished), f"{MODULE}/cmd/{program}"]
            flags = {"CGO_CFLAGS": "-O1 -Wno-deprecated-declarations"}
            subprocess.run(command, cwd=SOURCE, check=True, env=os.environ | flags)
            unfinished.rename(target)
    return target


class NvidiaNode(Node):
    """A node whose plugin for `gpu.nvidia.com` is NVIDIA's, with dynamic MIG."""

    def start(self, **environment: str) -> None:
        program = build("gpu-kubelet-plugin")
        self._stale = Path()  # its socket has the same name at every start
        for directory in (self.registry, self.plugins / self.driver, self.cdi):
            directory.mkdir(parents=True, exist_ok=True)
        own = {
            "PATH": os.environ["PATH"],
            "NODE_NAME": self.name,
            "KUBECONFIG": str(self.kubeconfig),
            "NVIDIA_DRIVER_ROOT": str(self.driver_root),
            "DRIVER_ROOT_CTR_PATH": str(self.driver_root),
            "NVIDIA_CDI_HOOK_PATH": "/usr/bin/nvidia-cdi-hook",
            "CDI_ROOT": str(self.cdi),
            "KUBELET_REGISTRAR_DIRECTORY_PATH": str(self.registry),
            "KUBELET_PLUGINS_DIRECTORY_PATH": str(self.plugins),
            "IMAGE_NAME": "none",
            "NAMESPACE": "default",
            "FEATURE_GATES": "DynamicMIG=true",
        }
        # It looks for the kernel's files at their fixed paths.
        script = '"$1/usr/bin/nvidia-simulator-mount" "$1" && shift && exec "$@"'
        command = ["unshare", "--mount", "sh", "-c", script, "sh", str(self.driver_root), str(program)]
        self._output = self.log.open("ab")
        self._process = subprocess.Popen(command, env={**own, **environment}, stdout=self._output, stderr=self._output)


async def hand_over(it: NodeWorld) -> None:
    """Partita leaves the node, and NVIDIA's driver comes: with the same hardware, directories and names."""
    if it.node.is_running():
        it.node.end()
    for item in await it.slices():
        await it.client.delete(path(RESOURCE_API, "resourceslices", name=item["metadata"]["name"]))
    node = it.node
    it.node = NvidiaNode(node.name, node.base, "none", node.kubeconfig, None, node.driver)
    await it.start()
