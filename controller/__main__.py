"""The controller's wiring: settings, connection, leader election, and what a leader does."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator

from api import compute_domain, kaiwo
from api.client import Client, Json
from api.errors import InvalidObject, PartitaError
from api.events import Recorder
from api.http import HttpServer
from api.logs import configure_logging
from api.nesting import allow_deep_objects
from controller.computedomain.labels import CliqueLabels
from controller.computedomain.reconcile import ComputeDomains
from controller.crds import renew_crds
from controller.leader import Elector
from controller.loop import WorkQueue
from controller.metrics import Metrics
from controller.nodepartitioning.reconcile import NodePartitioning
from controller.settings import ControllerSettings, parse_settings

log = logging.getLogger(__name__)


def main() -> None:
    """`partita-controller`: exit status 0 after a clean stop, 1 when leadership was lost or something is wrong."""
    allow_deep_objects()
    try:
        settings = parse_settings(sys.argv[1:], os.environ)
    except InvalidObject as wrong:
        sys.exit(f"Error: {wrong}")
    configure_logging(settings.log_level)
    failed = False
    try:
        asyncio.run(run(settings))
    except* PartitaError as group:
        failed = True
        for error in leaves(group):
            log.error("stopped", extra={"error": str(error), "reason": getattr(error, "reason", "")})
    if failed:
        sys.exit(1)


def leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    """The errors themselves, however deep the task groups were."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from leaves(error)
        else:
            yield error


async def run(settings: ControllerSettings) -> None:
    """Until SIGTERM or SIGINT. Raises LeadershipLost, and whatever ends the work."""
    metrics = Metrics()
    async with await Client.connect(settings.kubeconfig) as client:
        elector = Elector(client, settings.lease)
        metrics.watch_leading(lambda: elector.leading)
        filled: list[Callable[[], bool]] = []

        def is_ready() -> bool:
            """A standby is, when it can see the lease; the one that leads, when it has seen everything once."""
            return elector.seen and (not elector.leading or all(each() for each in filled))

        unready = "the API server has not been read yet"
        http = HttpServer(settings.http_endpoint, metrics.registry, is_ready, unready)
        async with asyncio.TaskGroup() as group:
            serving = group.create_task(http.run())
            await _until_stopped(elector.run(lambda: lead(client, settings, metrics, filled)))
            serving.cancel()


async def lead(
    client: Client, settings: ControllerSettings, metrics: Metrics, filled: list[Callable[[], bool]]
) -> None:
    """What the one that leads does. Puts into `filled` what says whether the caches are."""
    events = Recorder(client, "partita-controller", settings.lease.identity)
    queues: list[WorkQueue] = []
    metrics.watch_queue(lambda: sum(len(queue) for queue in queues))
    await renew_crds(client, _needed_crds(settings))
    async with asyncio.TaskGroup() as group:
        group.create_task(events.run())
        if settings.compute_domains:
            domains = ComputeDomains(client, settings.domains, events, metrics)
            metrics.watch_domains(domains.count)
            queues.append(domains.queue)
            filled.append(lambda: domains.caches.synced)
            group.create_task(domains.run())
            if settings.gpu_clique_label:
                labels = CliqueLabels(client, domains)
                queues.append(labels.queue)
                filled.append(lambda: labels.synced)
                group.create_task(labels.run())
        if settings.node_partitioning:
            nodes = NodePartitioning(client, settings.partitioning, events, metrics)
            queues.append(nodes.queue)
            filled.append(lambda: nodes.caches.synced)
            group.create_task(nodes.run())


def _needed_crds(settings: ControllerSettings) -> list[Json]:
    domains = compute_domain.build_crds() if settings.compute_domains else []
    return domains + (kaiwo.build_crds() if settings.node_partitioning else [])


async def _until_stopped(work: Coroutine[None, None, None]) -> None:
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    stopping = False

    def stop() -> None:
        nonlocal stopping
        stopping = True
        task.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    try:
        await task
    except asyncio.CancelledError:
        if not stopping:
            raise
        log.info("stopped_cleanly")


if __name__ == "__main__":
    main()
