"""What every NVML must do. Simulated nodes always; with `--nvml LIBRARY` the read-only part runs on that one too."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "hack/lib"))

from nvml_node import Node, bound, make_node

PROFILES = ("a100-40x1", "a100-80x1", "h100x2", "h200x1", "gb200", "a30x1", "rtx-pro-6000x1", "a100-40x2+h100x14")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--nvml", default=None, help="also run the read-only contract on this libnvidia-ml.so.1")


@pytest.fixture
def simulate(tmp_path: Path) -> Callable[..., Node]:
    """Makes a simulated node of a profile."""
    return lambda profile, *arguments: make_node(tmp_path / "driver", profile, *arguments)


@pytest.fixture
def h100(simulate: Callable[..., Node]) -> Iterator[tuple[Node, Any, Any]]:
    """A node with two H100 with pynvml on it: node, pynvml, the first GPU with MIG mode on."""
    node = simulate("h100x2")
    with bound(node.library) as nvml:
        device = nvml.nvmlDeviceGetHandleByIndex(0)
        assert nvml.nvmlDeviceSetMigMode(device, nvml.NVML_DEVICE_MIG_ENABLE) == nvml.NVML_SUCCESS
        yield node, nvml, device


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "any_nvml" in metafunc.fixturenames:
        real = metafunc.config.getoption("--nvml", default=None)
        libraries = [*PROFILES, *([f"library:{real}"] if real else [])]
        metafunc.parametrize("any_nvml", libraries, indirect=True, scope="module")


@pytest.fixture(scope="module")
def any_nvml(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """pynvml on a simulated node of each profile, or on the library of `--nvml`."""
    name = request.param
    if name.startswith("library:"):
        library = Path(name.removeprefix("library:"))
    else:
        library = make_node(tmp_path_factory.mktemp("node") / "driver", name).library
    with bound(library) as nvml:
        yield nvml
