"""`hack/bench repartition`: a node of eight AMD GPUs goes to and fro between two profiles.

The simulated hardware changes at once, so that what is measured is ours: from the label to the untainted node whose
ResourceSlices show the new mode. The drawing of the simulated tree is in it, some tenths of a second.
"""

import asyncio
import time
from typing import Final

from paths import IMAGES

from api.client import MERGE_PATCH, Client, NotFound, path
from api.kaiwo import DCM_TAINT_KEY, ENABLED_LABEL, KAIWO_TAINT_KEY, PROFILE_LABEL
from api.names import KAIWO_API_VERSION
from bench.computedomain_cluster import CHART, NAMESPACE, RELEASE, BenchCluster
from bench.report import median, percentile, show

BENCH: Final = "repartition"
NODE: Final = "n1"
VALUES: Final = (
    "nvidiaDriverRoot=/run/nvidia/driver,resources.amd.enabled=true,resources.gpus.enabled=false,"
    "resources.computeDomains.enabled=false,controller.nodePartitioning.enabled=true"
)
POLL_S: Final = 0.01
PATIENCE_S: Final = 120.0


def run(rounds: int) -> None:
    """With a cluster of its own."""
    cluster = BenchCluster(f"bench-{BENCH}")
    try:
        cluster.up("--nodes", "1", "--profile", "mi300xx8")
        cluster.run("load", str(IMAGES / "partita.tar"))
        release = ("upgrade", "--install", RELEASE, str(CHART), "--namespace", NAMESPACE, "--create-namespace")
        cluster.run("helm", *release, "--wait", "--set", VALUES)
        asyncio.run(_measure(cluster, rounds))
    finally:
        cluster.down()


async def _measure(cluster: BenchCluster, rounds: int) -> None:
    async with await Client.connect(str(cluster.kubeconfig)) as client:
        await _go(client, "cpx")  # the first time makes ConfigMap and KaiwoNode, too
        for profile in ("spx", "cpx"):
            took_s = []
            for _ in range(rounds):
                await _go(client, "cpx" if profile == "spx" else "spx")
                took_s.append(await _go(client, profile))
            show(BENCH, f"8-gpus-to-{profile}", "p50", median(took_s), "s")
            show(BENCH, f"8-gpus-to-{profile}", "max", percentile(took_s, 100), "s")


async def _go(client: Client, profile: str) -> float:
    """Seconds until the node is there; none where it is already."""
    started = time.monotonic()
    labels = {ENABLED_LABEL: "true", PROFILE_LABEL: profile}
    await client.patch(path("v1", "nodes", name=NODE), {"metadata": {"labels": labels}}, MERGE_PATCH)
    async with asyncio.timeout(PATIENCE_S):
        while not await _is_there(client, profile):  # noqa: ASYNC110  the event is another process's
            await asyncio.sleep(POLL_S)
    return time.monotonic() - started


async def _is_there(client: Client, profile: str) -> bool:
    try:
        kaiwo = await client.get(path(KAIWO_API_VERSION, "kaiwonodes", name=NODE))
    except NotFound:
        return False
    status = kaiwo.get("status", {}).get("partitioning", {})
    node = await client.get(path("v1", "nodes", name=NODE))
    taints = {taint["key"] for taint in node["spec"].get("taints", ())}
    is_done = (status.get("phase"), status.get("appliedProfile")) == ("Completed", profile)
    return is_done and not taints & {DCM_TAINT_KEY, KAIWO_TAINT_KEY}
