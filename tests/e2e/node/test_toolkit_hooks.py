"""NVIDIA's own `nvidia-cdi-hook` on the node: containers find the driver by the links and the cache that it makes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.bench import Bench, open_bench
from tests.support.cluster import Cluster
from tests.support.go_tools import built
from tests.support.hardware import Simulator
from tests.support.manifests import claim_template, gpu_request, pod
from tests.support.plugin import BARE_NODE, NodePlugin

FOLDER = "/usr/lib/x86_64-linux-gnu"
COMPATIBLE = "/usr/local/cuda/compat"  # where CUDA's images bring libraries that are newer than the node's
NEWER = "libcuda.so.999.10.01"
LOADER = "/lib64/ld-linux-x86-64.so.2"
RESTRICTED = {
    "runAsUser": 1000,
    "readOnlyRootFilesystem": True,
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
}


@pytest.fixture(scope="session")
def hook() -> Path:
    """The program."""
    return built("nvidia-container-toolkit") / "nvidia-cdi-hook"


@pytest.fixture
def hooked(cluster: Cluster, running_plugin: NodePlugin, simulator: Simulator, hook: Path) -> Iterator[Bench]:
    """A plugin that has found the program below the driver root; the next one finds none."""
    place = simulator.root / "usr/bin" / hook.name
    place.write_bytes(hook.read_bytes())
    place.chmod(0o755)
    running_plugin.restart()
    try:
        running_plugin.wait_registered()
        it = open_bench(cluster, running_plugin, simulator)
        it.wait_published()
        yield it
        it.sweep()
    finally:
        place.unlink()
        running_plugin.kill()


def test_real_hooks_give_containers_links_a_loader_cache_and_the_images_newer_cuda(
    cluster: Cluster, hooked: Bench
) -> None:
    """In a container without any right, whose root is read-only, and which has newer libraries than the node."""
    volume = {"name": "cuda", "mountPath": COMPATIBLE}
    body = pod("user", hooked.namespace, templates=("gpu",), node=BARE_NODE, volumes=[{"name": "cuda", "emptyDir": {}}])
    (container,) = body["spec"]["containers"]
    copy = f"cp {FOLDER}/libcuda.so.1 {COMPATIBLE}/{NEWER} && ln -s {NEWER} {COMPATIBLE}/libcuda.so.1"
    body["spec"]["initContainers"] = [
        {**container, "name": "image", "command": ["sh", "-c", copy], "volumeMounts": [volume]}
    ]
    container |= {"volumeMounts": [volume], "securityContext": RESTRICTED}
    cluster.apply([claim_template("gpu", hooked.namespace, gpu_request()), body])
    hooked.wait_running("user")

    def run(command: str) -> str:
        return cluster.in_pod("user", "sh", "-c", command, namespace=hooked.namespace, container="c0")

    version = run(f"basename {FOLDER}/libcuda.so.*.*.*").strip().removeprefix("libcuda.so.")
    for name in ("libcuda.so", "libcuda.so.1", "libnvidia-ml.so.1"):
        assert run(f"readlink {FOLDER}/{name}").strip() == f"{name.partition('.')[0]}.so.{version}"
    loaded = run(f"{LOADER} --preload libcuda.so.1:libnvidia-ml.so.1 --list {FOLDER}/libm.so.6")
    assert f"libcuda.so.1 => {COMPATIBLE}/libcuda.so.1" in loaded
    assert f"libnvidia-ml.so.1 => {FOLDER}/libnvidia-ml.so.1" in loaded
    assert f"{FOLDER}/libnvidia-ml.so.1" in run("strings /etc/ld.so.cache").split()
    (minor,) = run("cd /dev; ls -d nvidia[0-9]*").split()
    visible = 1 << int(minor.removeprefix("nvidia"))
    assert f'"EGLVisibleDGPUDevices",{visible:#x}' in run("cat /etc/nvidia/nvidia-application-profiles-rc.d/*")
    hooked.delete_pod("user")
