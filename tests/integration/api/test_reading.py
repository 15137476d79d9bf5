"""GETs of the API client from a real API server: over TLS, with its certificates and tokens."""

import asyncio
import base64
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from api.client import Client, Forbidden, NotFound, Unauthorized, Unavailable
from tests.support.cluster import Cluster, path


def kubeconfig(cluster: Cluster, directory: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Path:
    """The administrator's, with its cluster and its user changed."""
    config = yaml.safe_load(cluster.kubeconfig.read_text())
    change(config["clusters"][0]["cluster"], config["users"][0]["user"])
    file = directory / "kubeconfig"
    file.write_text(yaml.safe_dump(config))
    return file


def talk(file: Path, scenario: Callable[[Client], Awaitable[None]]) -> None:
    async def run() -> None:
        async with await Client.connect(str(file)) as client:
            await scenario(client)

    asyncio.run(run())


def make_config_maps(cluster: Cluster, namespace: str, count: int) -> list[str]:
    """Their paths. Some are longer than the server sends in one piece."""
    where = path("v1", "configmaps", namespace=namespace)
    for number in range(count):
        data = {"number": str(number), "long": f"{number} " * 10_000 * number}
        cluster.create(where, {"metadata": {"name": f"c{number}"}, "data": data})
    return [f"{where}/c{number}" for number in range(count)]


def test_what_is_read_is_what_is_there_also_by_many_at_once(control_plane: Cluster, namespace: str) -> None:
    paths = make_config_maps(control_plane, namespace, 12)
    expected = [control_plane.get(each) for each in paths]

    async def scenario(client: Client) -> None:
        assert [await client.get(each) for each in paths] == expected
        for _ in range(3):
            assert await asyncio.gather(*(client.get(each) for each in paths)) == expected

    talk(control_plane.kubeconfig, scenario)


def test_what_is_missing_is_not_found(control_plane: Cluster, namespace: str) -> None:
    async def scenario(client: Client) -> None:
        for _ in range(2):
            with pytest.raises(NotFound, match='configmaps "none" not found'):
                await client.get(path("v1", "configmaps", namespace=namespace, name="none"))

    talk(control_plane.kubeconfig, scenario)


def test_an_api_server_that_was_killed_is_read_from_when_it_is_back(control_plane: Cluster, namespace: str) -> None:
    (where,) = make_config_maps(control_plane, namespace, 1)

    async def scenario(client: Client) -> None:
        before = await client.get(where)
        await asyncio.to_thread(control_plane.run, "kill", "control-plane", "apiserver")
        try:
            with pytest.raises(Unavailable):
                await client.get(where)
        finally:
            await asyncio.to_thread(control_plane.run, "start", "control-plane", "apiserver")
        async with asyncio.timeout(60):
            while True:
                try:
                    assert await client.get(where) == before
                    return
                except (Unavailable, Forbidden):  # an API server that has just started knows no roles yet
                    await asyncio.sleep(0.2)

    talk(control_plane.kubeconfig, scenario)


def test_a_server_that_the_certificate_authority_does_not_know_is_not_read_from(
    control_plane: Cluster, tmp_path: Path
) -> None:
    def change(cluster: dict[str, Any], user: dict[str, Any]) -> None:
        cluster["certificate-authority-data"] = user["client-certificate-data"]  # some certificate, and no authority

    async def scenario(client: Client) -> None:
        with pytest.raises(Unavailable, match="certificate"):
            await client.get("/version")

    talk(kubeconfig(control_plane, tmp_path, change), scenario)


@pytest.mark.parametrize(("name", "good"), [("kubernetes.default.svc", True), ("elsewhere.example", False)])
def test_a_server_is_known_by_the_name_that_the_kubeconfig_says(
    control_plane: Cluster, tmp_path: Path, name: str, good: bool
) -> None:
    def change(cluster: dict[str, Any], user: dict[str, Any]) -> None:
        cluster["tls-server-name"] = name

    async def scenario(client: Client) -> None:
        if good:
            assert "gitVersion" in await client.get("/version")
        else:
            with pytest.raises(Unavailable, match="certificate"):
                await client.get("/version")

    talk(kubeconfig(control_plane, tmp_path, change), scenario)


def test_a_token_is_who_we_are(control_plane: Cluster, namespace: str, tmp_path: Path) -> None:
    (where,) = make_config_maps(control_plane, namespace, 1)
    control_plane.create(path("v1", "serviceaccounts", namespace=namespace), {"metadata": {"name": "reader"}})
    token = control_plane.kubectl("create", "token", "reader", "--namespace", namespace).strip()

    def change(cluster: dict[str, Any], user: dict[str, Any]) -> None:
        user.clear()
        user["token"] = token

    async def scenario(client: Client) -> None:
        with pytest.raises(Forbidden, match=f"system:serviceaccount:{namespace}:reader"):
            await client.get(where)
        assert "gitVersion" in await client.get("/version")

    talk(kubeconfig(control_plane, tmp_path, change), scenario)
    token = base64.b64encode(b"nobody's").decode()

    async def refused(client: Client) -> None:
        with pytest.raises(Unauthorized):
            await client.get(where)

    talk(kubeconfig(control_plane, tmp_path, change), refused)
