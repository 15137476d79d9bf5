"""NVIDIA's own Go bindings on the simulated library."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from nvml_node import Node, bound, profiles_of
from simulator.build import cache_folder

SOURCE = Path(__file__).parent / "go-nvml"


@pytest.fixture(scope="session")
def go_client() -> Path:
    """The Go program, built once into the cache."""
    go = shutil.which("go")
    assert go, "the Go toolchain is needed (hack/test fetches it)"
    program = cache_folder() / "go-nvml"
    flags = {"CGO_CFLAGS": "-O1 -Wno-deprecated-declarations"}
    subprocess.run([go, "build", "-o", str(program), "."], cwd=SOURCE, check=True, env=os.environ | flags)
    return program


@pytest.mark.parametrize("profile", ["h100x1", "gb200x1", "rtx-pro-6000x1", "a30x1"])
def test_go_clients_enumerate_create_and_destroy(simulate: Callable[..., Node], go_client: Path, profile: str) -> None:
    node = simulate(profile)
    done = subprocess.run([go_client, node.library], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (gpu,) = json.loads(done.stdout)["gpus"]
    with bound(node.library) as nvml:
        names = set(profiles_of(nvml.nvmlDeviceGetHandleByIndex(0)))
    assert names <= set(gpu["profiles"])  # the rest are parts of these, such as 1c.3g.40gb
    assert set(gpu["created"] or names) == names
    assert node.instances() == set()
