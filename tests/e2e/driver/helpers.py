"""What the driver's tests read from a node."""

import json
import re

from tests.support.cluster import Cluster, Object

NVIDIA_SMI = "/run/nvidia/driver/usr/bin/nvidia-smi"
CDI_ROOT = "/var/run/cdi"


def cdi_files(cluster: Cluster, node: str) -> list[str]:
    return cluster.in_node(node, "ls", CDI_ROOT).split()


def cdi_spec(cluster: Cluster, node: str, claim_uid: str) -> Object:
    """Of one prepared claim."""
    spec: Object = json.loads(cluster.in_node(node, "sh", "-c", f"cat {CDI_ROOT}/*{claim_uid}*"))
    return spec


def time_slices(cluster: Cluster, node: str) -> dict[str, str]:
    """UUID of each GPU -> Default, Short, Medium or Long."""
    script = f"{NVIDIA_SMI} -L; {NVIDIA_SMI} compute-policy --list"
    text = cluster.in_node(node, "sh", "-c", script)
    uuids = dict(re.findall(r"^GPU (\d+): .*\(UUID: (GPU-\S+)\)", text, re.MULTILINE))
    policies = re.findall(r"^GPU (\d+): timeslice (\w+)", text, re.MULTILINE)
    return {uuids[index]: word for index, word in policies}


def create_device_classes(cluster: Cluster) -> None:
    """Those of the chart, where it is not installed."""
    for name, kind in (("gpu.nvidia.com", "gpu"), ("mig.nvidia.com", "mig")):
        expression = f"device.driver == 'gpu.nvidia.com' && device.attributes['gpu.nvidia.com'].type == '{kind}'"
        spec: Object = {"selectors": [{"cel": {"expression": expression}}]}
        cluster.apply(
            {"apiVersion": "resource.k8s.io/v1", "kind": "DeviceClass", "metadata": {"name": name}, "spec": spec}
        )
