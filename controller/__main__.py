"""The controller's wiring: settings, connection, leader election, and what a leader does."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator

from api import compute_domain, kaiwo
from api.client import Client, Json
from api.errors import PartitaError
from api.events import Recorder
from api.logs import configure_logging
from api.nesting import allow_deep_objects
from controller.computedomain.labels import CliqueLabels
from controller.computedomain.reconcile import ComputeDomains
from controller.computedomain.state import Settings
from controller.crds import renew_crds
from controller.leader import Elector, LeaseSettings
from controller.loop import WorkQueue
from controller.metrics import Metrics, serve
from controller.nodepartitioning.reconcile import NodePartitioning
from controller.nodepartitioning.state import Limits
from controller.nodepartitioning.state import Settings as PartitioningSettings
from controller.settings import ControllerSettings, parse_settings

log = logging.getLogger(__name__)


def main() -> None:
    """`partita-controller`: exit status 0 after a clean stop, 1 when leadership was lost or something is wrong."""
    failed = False
    allow_deep_objects()
    try:
        settings = parse_settings(sys.argv[1:], os.environ)
        configure_logging(settings.log_level)
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
        elector = Elector(client, build_lease_settings(settings))
        metrics.watch_leading(lambda: elector.leading)
        filled: list[Callable[[], bool]] = []

        def is_ready() -> bool:
            """A standby is, when it can see the lease; the one that leads, when it has seen everything once."""
            return elector.seen and (not elector.leading or all(each() for each in filled))

        web = await serve(settings.http_endpoint, metrics, is_ready)
        try:
            await _until_stopped(elector.run(lambda: lead(client, settings, metrics, filled)))
        finally:
            await web.cleanup()


async def lead(
    client: Client, settings: ControllerSettings, metrics: Metrics, filled: list[Callable[[], bool]]
) -> None:
    """What the one that leads does. Puts into `filled` what says whether the caches are."""
    events = Recorder(client, "partita-controller", settings.identity)
    queues: list[WorkQueue] = []
    metrics.watch_queue(lambda: sum(len(queue) for queue in queues))
    await renew_crds(client, _needed_crds(settings))
    async with asyncio.TaskGroup() as group:
        group.create_task(events.run())
        if settings.compute_domains:
            domains = ComputeDomains(client, build_domain_settings(settings), events, metrics)
            metrics.watch_domains(domains.count)
            queues.append(domains.queue)
            filled.append(lambda: domains.synced)
            group.create_task(domains.run())
            if settings.gpu_clique_label:
                labels = CliqueLabels(client, domains)
                queues.append(labels.queue)
                filled.append(lambda: labels.synced)
                group.create_task(labels.run())
        if settings.node_partitioning:
            nodes = NodePartitioning(client, build_partitioning_settings(settings), events, metrics)
            queues.append(nodes.queue)
            filled.append(lambda: nodes.synced)
            group.create_task(nodes.run())


def _needed_crds(settings: ControllerSettings) -> list[Json]:
    domains = compute_domain.build_crds() if settings.compute_domains else []
    return domains + (kaiwo.build_crds() if settings.node_partitioning else [])


def build_lease_settings(settings: ControllerSettings) -> LeaseSettings:
    return LeaseSettings(
        namespace=settings.namespace,
        name=settings.lease_name,
        identity=settings.identity,
        duration_s=settings.lease_duration_s,
        renew_deadline_s=settings.lease_renew_deadline_s,
        retry_period_s=settings.lease_retry_period_s,
    )


def build_domain_settings(settings: ControllerSettings) -> Settings:
    return Settings(
        namespace=settings.namespace,
        image=settings.image,
        max_nodes_per_imex_domain=settings.max_nodes_per_imex_domain,
        tls=settings.imex_tls,
        node_list=settings.imex_node_list,
        service_account=settings.daemon_service_account,
        priority_class=settings.daemon_priority_class,
        image_pull_policy=settings.image_pull_policy,
        image_pull_secrets=settings.image_pull_secrets,
    )


def build_partitioning_settings(settings: ControllerSettings) -> PartitioningSettings:
    return PartitioningSettings(
        limits=Limits(
            drain_s=settings.partitioning_drain_s,
            plugin_apply_s=settings.partitioning_apply_s,
            dcm_apply_s=settings.partitioning_dcm_s,
        ),
        max_unavailable=settings.partitioning_max_unavailable,
        tolerate_kube_system=settings.partitioning_tolerate_kube_system,
    )


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
