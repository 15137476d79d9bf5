"""API objects that the benchmark needs: a node, and claims that are allocated as the scheduler would."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from api.client import Client, Conflict, Json, NotFound, path

RESOURCE_API = "resource.k8s.io/v1"
DRIVER = "gpu.nvidia.com"


@dataclass(frozen=True, slots=True)
class Claim:
    namespace: str
    name: str
    uid: str


async def make_namespace(client: Client, name: str) -> None:
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    try:
        await client.create(path("v1", "namespaces"), body)
    except Conflict:
        return


async def make_node(client: Client, name: str) -> None:
    body = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}
    try:
        await client.create(path("v1", "nodes"), body)
    except Conflict:
        return


def allocation(
    node: str, devices: Sequence[str], driver: str = DRIVER, configs: Sequence[Json] = (), **result: Any
) -> Json:
    """`status` of a claim whose requests r0, r1, ... were given these devices."""
    results = [
        {"driver": driver, "pool": node, "device": device, "request": f"r{index}", **result}
        for index, device in enumerate(devices)
    ]
    term = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}
    selector = {"nodeSelectorTerms": [term]}
    return {"allocation": {"devices": {"results": results, "config": list(configs)}, "nodeSelector": selector}}


async def make_claim(
    client: Client,
    namespace: str,
    name: str,
    node: str,
    devices: Sequence[str],
    configs: Sequence[Json] = (),
    **result: Any,
) -> Claim:
    """A fresh claim, allocated."""
    requests = [
        {"name": f"r{index}", "exactly": {"deviceClassName": "gpu.nvidia.com", **_admin(result)}}
        for index, _ in enumerate(devices)
    ]
    body = {
        "apiVersion": RESOURCE_API,
        "kind": "ResourceClaim",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"devices": {"requests": requests}},
    }
    made = await client.create(path(RESOURCE_API, "resourceclaims", namespace=namespace), body)
    made["status"] = allocation(node, devices, configs=configs, **result)
    status = path(RESOURCE_API, "resourceclaims", namespace=namespace, name=name, subresource="status")
    await client.update(status, made)
    return Claim(namespace, name, made["metadata"]["uid"])


def _admin(result: Json) -> Json:
    return {"adminAccess": True} if result.get("adminAccess") else {}


async def make_claims(
    client: Client, namespace: str, prefix: str, node: str, devices: Sequence[Sequence[str]], driver: str = DRIVER
) -> list[Claim]:
    """One claim for each list of devices, a few at a time."""
    gate = asyncio.Semaphore(4)

    async def make(index: int, names: Sequence[str]) -> Claim:
        async with gate:
            return await make_claim(client, namespace, f"{prefix}-{index}", node, names, driver=driver)

    return list(await asyncio.gather(*(make(index, names) for index, names in enumerate(devices))))


async def delete_claims(client: Client, namespace: str) -> None:
    await client.delete(path(RESOURCE_API, "resourceclaims", namespace=namespace))


async def delete_slices(client: Client, node: str) -> None:
    for item in await client.list(path(RESOURCE_API, "resourceslices"), fieldSelector=f"spec.nodeName={node}"):
        try:
            await client.delete(path(RESOURCE_API, "resourceslices", name=item["metadata"]["name"]))
        except NotFound:
            continue


async def published_devices(client: Client, node: str, driver: str = DRIVER) -> list[Json]:
    """All devices of the node's complete pool, in the allocator's order; none while it is incomplete."""
    selector = f"spec.nodeName={node},spec.driver={driver}"
    slices = await client.list(path(RESOURCE_API, "resourceslices"), fieldSelector=selector)
    if not slices or len(slices) != slices[0]["spec"]["pool"]["resourceSliceCount"]:
        return []
    slices.sort(key=lambda item: item["metadata"]["name"])
    return [device for item in slices for device in item["spec"].get("devices") or ()]


async def wait_for_devices(client: Client, node: str, driver: str = DRIVER, timeout_s: float = 30.0) -> list[Json]:
    """The devices of the node's pool as soon as it is complete. Raises TimeoutError."""
    deadline_s = time.monotonic() + timeout_s
    devices = await published_devices(client, node, driver)
    while not devices and time.monotonic() < deadline_s:
        await asyncio.sleep(0.01)
        devices = await published_devices(client, node, driver)
    if not devices:
        raise TimeoutError(f"node {node} has published no complete pool of {driver} within {timeout_s} s")
    return devices


async def bind_admin(client: Client, namespace: str, account: str) -> None:
    """A service account that may do everything, for a plugin whose own roles are not what is measured."""
    collection = path("v1", "serviceaccounts", namespace=namespace)
    subject = {"kind": "ServiceAccount", "name": account, "namespace": namespace}
    body = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": account}}
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": f"{namespace}-{account}"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [subject],
    }
    for where, what in ((collection, body), (path("rbac.authorization.k8s.io/v1", "clusterrolebindings"), binding)):
        try:
            await client.create(where, what)
        except Conflict:
            continue


async def make_token(client: Client, namespace: str, account: str) -> str:
    where = path("v1", "serviceaccounts", namespace=namespace, name=account, subresource="token")
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 7200}}
    answer = await client.create(where, body)
    return str(answer["status"]["token"])
