"""Names of sockets, and whose files they are."""

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import UUID

import pytest

from api.errors import InvalidObject
from kubeletplugin.sockets import (
    MAX_SOCKET_PATH_BYTES,
    SocketServer,
    choose_socket_path,
    dra_socket_names,
    registration_socket_names,
    remove_stale_dra_sockets,
    remove_stale_registrations,
)

UID = str(UUID(int=7))
REGISTRY = Path("/var/lib/kubelet/plugins_registry")


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A short one: a socket's path is limited, and pytest's own folders are deep when tests run side by side."""
    with TemporaryDirectory() as directory:
        yield Path(directory)


def names(directory: Path) -> list[str]:
    return sorted(file.name for file in directory.iterdir())


@pytest.mark.parametrize("driver", ["gpu.nvidia.com", "gpu.amd.com", "compute-domain.nvidia.com", "d" * 63])
@pytest.mark.parametrize("uid", ["", UID])
def test_every_registration_socket_fits_and_ends_as_the_kubelets_helper_ends_it(driver: str, uid: str) -> None:
    path = choose_socket_path(REGISTRY, registration_socket_names(driver, uid, "a1b2c3"))
    assert len(str(path)) <= MAX_SOCKET_PATH_BYTES
    assert path.name.endswith("-reg.sock")


def test_a_short_driver_name_is_kept_whole() -> None:
    path = choose_socket_path(REGISTRY, registration_socket_names("gpu.nvidia.com", UID, "a1b2c3"))
    assert path.name == f"gpu.nvidia.com-{UID}-a1b2c3-reg.sock"


def test_a_dra_socket_is_shortened_where_the_directory_is_long() -> None:
    directory = Path("/var/lib/kubelet/plugins") / ("d" * 45)
    path = choose_socket_path(directory, dra_socket_names(UID))
    assert len(str(path)) <= MAX_SOCKET_PATH_BYTES
    assert path.name != f"dra-{UID}.sock"


def test_instances_never_share_a_shortened_name() -> None:
    for form in range(3):
        found = [registration_socket_names("d" * 63, str(UUID(int=n)), "a1b2c3")[form] for n in range(50)]
        found += [registration_socket_names("d" * 63, UID, f"{n:06x}")[form] for n in range(50)]
        assert len(set(found)) == len(found)


@pytest.mark.parametrize("form", range(3))
def test_only_the_sockets_of_the_same_driver_that_nobody_serves_are_removed(tmp_path: Path, form: int) -> None:
    dead, alive, others = (
        registration_socket_names(driver, uid, "a1b2c3")[form]
        for driver, uid in (("gpu.nvidia.com", "dead"), ("gpu.nvidia.com", "alive"), ("gpu.amd.com", "dead"))
    )
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / alive))
        listener.listen()
        for name in (dead, others):
            with socket.socket(socket.AF_UNIX) as abandoned:
                abandoned.bind(str(tmp_path / name))
        (tmp_path / "gpu.nvidia.com-file-reg.sock").touch()
        assert remove_stale_registrations(tmp_path, "gpu.nvidia.com") == (dead,)
        assert names(tmp_path) == sorted([alive, others, "gpu.nvidia.com-file-reg.sock"])


def test_dra_sockets_of_killed_pods_are_removed_and_those_in_use_and_others_stay(tmp_path: Path) -> None:
    dead, alive = dra_socket_names("dead")[0], dra_socket_names("alive")[1]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / alive))
        listener.listen()
        for name in (dead, "dra.sock"):
            with socket.socket(socket.AF_UNIX) as abandoned:
                abandoned.bind(str(tmp_path / name))
        (tmp_path / "claims.journal").touch()
        assert remove_stale_dra_sockets(tmp_path) == (dead,)
        assert names(tmp_path) == sorted([alive, "claims.journal", "dra.sock"])


def test_a_stopped_listener_with_a_full_queue_counts_as_alive(tmp_path: Path) -> None:
    path = tmp_path / "gpu.nvidia.com-old-reg.sock"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as waiting:
        listener.bind(str(path))
        listener.listen(0)
        waiting.connect(str(path))
        assert remove_stale_registrations(tmp_path, "gpu.nvidia.com") == ()


def test_a_registry_that_does_not_exist_yet_has_nothing_stale(tmp_path: Path) -> None:
    assert remove_stale_registrations(tmp_path / "missing", "gpu.nvidia.com") == ()


def test_a_directory_that_is_too_long_is_named() -> None:
    with pytest.raises(InvalidObject, match="at most 107 bytes"):
        choose_socket_path(Path("/" + "x" * 100), dra_socket_names(""))


def test_a_stopping_server_leaves_its_successors_socket_alone(tmp_path: Path) -> None:
    async def scenario() -> None:
        old, new = SocketServer(tmp_path / "dra.sock", ()), SocketServer(tmp_path / "dra.sock", ())
        await old.start()
        await new.start()
        await old.stop(0)
        assert names(tmp_path) == ["dra.sock"]
        await new.stop(0)
        assert names(tmp_path) == []

    asyncio.run(scenario())


def test_a_socket_that_somebody_removed_can_be_put_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = SocketServer(tmp_path / "dra.sock", ())
        await server.start()
        server.path.unlink()
        assert not server.is_present()
        await server.restart()
        assert server.is_present()
        await server.stop(0)

    asyncio.run(scenario())
