"""NVIDIA's own DRA driver (sigs.k8s.io/dra-driver-nvidia-gpu) on a node, in place of Partita's plugin."""

import os
import subprocess
from pathlib import Path

from cluster import tools

from bench.node import Node


class NvidiaNode(Node):
    """A node whose plugin for `gpu.nvidia.com` is NVIDIA's, with dynamic MIG."""

    def start(self, **environment: str) -> None:
        program = tools.build("nvidia-dra-driver") / "gpu-kubelet-plugin"
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
            # As its chart ships, it waits for its own rate limit most of the time.
            "KUBE_API_QPS": "1000",
            "KUBE_API_BURST": "1000",
        }
        # It looks for the kernel's files at their fixed paths.
        script = '"$1/usr/bin/nvidia-simulator-mount" "$1" && shift && exec "$@"'
        command = ["unshare", "--mount", "sh", "-c", script, "sh", str(self.driver_root), str(program)]
        self._output = self.log.open("ab")
        self._process = subprocess.Popen(command, env={**own, **environment}, stdout=self._output, stderr=self._output)
