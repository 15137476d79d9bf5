"""The node plugin: `python -m kubeletplugin` or `partita-kubelet-plugin`."""

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Final

from prometheus_client import REGISTRY

from api.client import Client
from api.errors import InvalidObject, PartitaError
from api.events import Recorder
from api.http import HttpServer
from api.logs import configure_logging
from api.names import (
    AMD_CDI_VENDOR,
    AMD_GPU_DRIVER,
    COMPUTE_DOMAIN_CDI_VENDOR,
    COMPUTE_DOMAIN_DRIVER,
    NVIDIA_CDI_VENDOR,
    NVIDIA_GPU_DRIVER,
)
from api.nesting import allow_deep_objects
from kubeletplugin.cdi_files import CdiFiles
from kubeletplugin.compute_domain import ComputeDomainDriver
from kubeletplugin.crash import CrashPoint
from kubeletplugin.driver import ClaimService, NodeDriver
from kubeletplugin.driver_files import DriverFiles
from kubeletplugin.executor import Executor
from kubeletplugin.files import Store
from kubeletplugin.hardware.nvml import NvmlBackend
from kubeletplugin.hardware.tree import DriverRoot
from kubeletplugin.nvidia import NvidiaDriver
from kubeletplugin.publisher import Publisher
from kubeletplugin.server import HealthBoard, KubeletServer
from kubeletplugin.settings import RELOAD_MARK, Settings, parse_settings, parse_xids

log = logging.getLogger("kubeletplugin")

Build = Callable[[Settings, Client, Recorder, ThreadPoolExecutor], NodeDriver]


@lru_cache
def _nvml(root: DriverRoot) -> NvmlBackend:
    """One for both drivers: the library's session is the process's, and ends only when nobody has it open."""
    return NvmlBackend(root)


def build_nvidia(settings: Settings, client: Client, events: Recorder, syncer: ThreadPoolExecutor) -> NodeDriver:
    root = DriverRoot(settings.driver_root, settings.seen_driver_root, settings.nvidia_cdi_hook_path)
    return NvidiaDriver(
        node=settings.node_name,
        client=client,
        events=events,
        executor=Executor(_nvml(root)),
        store=Store(settings.data_directory(NVIDIA_GPU_DRIVER), NVIDIA_GPU_DRIVER, syncer),
        cdi=CdiFiles(Path(settings.cdi_root), NVIDIA_CDI_VENDOR),
        files=DriverFiles(root, events, settings.node_name),
        crash=CrashPoint(settings.partita_crash_after),
        ignored_xids=parse_xids(settings.additional_xids_to_ignore),
        rescan_interval_s=settings.rescan_interval_s,
        stale_grace_s=settings.stale_claim_grace_s,
        boot_id_path=Path(settings.boot_id_path),
    )


def build_compute_domain(
    settings: Settings, client: Client, events: Recorder, syncer: ThreadPoolExecutor
) -> NodeDriver:
    root = DriverRoot(settings.driver_root, settings.seen_driver_root, settings.nvidia_cdi_hook_path)
    return ComputeDomainDriver(
        node=settings.node_name,
        namespace=settings.pod_namespace,
        client=client,
        executor=Executor(_nvml(root)),
        cdi=CdiFiles(Path(settings.cdi_root), COMPUTE_DOMAIN_CDI_VENDOR),
        root=root,
        directory=settings.data_directory(COMPUTE_DOMAIN_DRIVER),
        binding=settings.binding_conditions,
        stale_grace_s=settings.stale_claim_grace_s,
    )


def build_amd(settings: Settings, client: Client, events: Recorder, syncer: ThreadPoolExecutor) -> NodeDriver:
    # Only where there is AMD hardware: a node without it does not carry the memory of what serves it.
    from kubeletplugin.amd import AmdDriver
    from kubeletplugin.hardware.amd_sysfs import AmdRoot
    from kubeletplugin.hardware.amdsmi import AmdSmi

    return AmdDriver(
        node=settings.node_name,
        client=client,
        events=events,
        backend=AmdSmi(AmdRoot.find(*settings.amd_root)),
        store=Store(settings.data_directory(AMD_GPU_DRIVER), AMD_GPU_DRIVER, syncer),
        cdi=CdiFiles(Path(settings.cdi_root), AMD_CDI_VENDOR),
        crash=CrashPoint(settings.partita_crash_after),
        on_claim=settings.amd_partitioning == "on-claim",
        rescan_interval_s=settings.rescan_interval_s,
        stale_grace_s=settings.stale_claim_grace_s,
        boot_id_path=Path(settings.boot_id_path),
    )


BUILDERS: dict[str, Build] = {
    NVIDIA_GPU_DRIVER: build_nvidia,
    COMPUTE_DOMAIN_DRIVER: build_compute_domain,
    AMD_GPU_DRIVER: build_amd,
}


NVIDIA_DRIVERS: Final = (NVIDIA_GPU_DRIVER, COMPUTE_DOMAIN_DRIVER)
_LOOK_INTERVAL_S: Final = 10.0


def find_drivers(settings: Settings, enabled: Sequence[str]) -> list[str]:
    """The enabled drivers whose hardware shows itself now. A node may have none: it has nothing to serve."""
    roots = (settings.amd_root[1], Path("/"))
    # The kernel module may be away because we were killed while reloading it.
    has_amd = (settings.data_directory(AMD_GPU_DRIVER) / RELOAD_MARK).exists() or any(
        (root / "sys/module/amdgpu/drivers/pci:amdgpu").is_dir() for root in roots
    )
    has_nvidia = DriverRoot(settings.driver_root, settings.seen_driver_root).has_gpus()
    return [name for name in enabled if (has_nvidia if name in NVIDIA_DRIVERS else has_amd)]


_REGISTRATION_PATIENCE_S = 3.0  # the kubelet looks for new sockets every second
_GC_THRESHOLDS = (2_000, 20, 20)  # a claim makes some thousand short-lived objects, hardly any of them in cycles


class Plugin:
    """One driver with everything around it."""

    def __init__(self, name: str, settings: Settings, client: Client, syncer: ThreadPoolExecutor) -> None:
        self._settings = settings
        self._client = client
        self._events = Recorder(client, name, settings.node_name)
        self._driver = BUILDERS[name](settings, client, self._events, syncer)
        self._board = HealthBoard()
        self._publisher = Publisher(self._driver, client, self._events, settings.node_name, self._board)
        self._server: KubeletServer | None = None

    def is_ready(self) -> bool:
        return self._server is not None and self._server.registered and self._publisher.published.is_set()

    async def run(self) -> None:
        """Recover, serve, publish, until cancelled; the slices stay."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._events.run())
            await self._driver.recover()
            claims = ClaimService(self._driver, self._client, self._events, tasks, self._publisher.changed)
            self._server = KubeletServer(
                self._driver.name,
                claims,
                self._board,
                Path(self._settings.kubelet_registrar_directory_path),
                self._settings.data_directory(self._driver.name),
                self._settings.pod_uid,
            )
            await self._server.start()
            try:
                async with asyncio.TaskGroup() as inner:
                    inner.create_task(self._server.watch())
                    # A pod that is scheduled before the kubelet knows the driver fails its first preparation, and the
                    # next comes after 60 to 90 s. Without a kubelet the slices still tell what the node has.
                    registered = self._server.wait_until_registered(_REGISTRATION_PATIENCE_S)
                    inner.create_task(self._publisher.run(registered))
                    inner.create_task(self._driver.run(self._publisher.changed))
            finally:
                await self._server.stop()


async def run(settings: Settings) -> None:
    """Serve every driver until SIGTERM or SIGINT."""
    is_auto = settings.drivers == "auto"
    enabled = list(BUILDERS) if is_auto else [name.strip() for name in settings.drivers.split(",")]
    unknown = [name for name in enabled if name not in BUILDERS]
    if unknown:
        raise InvalidObject(f"DRIVERS: {unknown[0]!r} is not a driver; right would be some of {', '.join(BUILDERS)}")
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, stopping.set)
    syncer = ThreadPoolExecutor(2, thread_name_prefix="sync")
    async with await Client.connect(settings.kubeconfig or None) as client:
        plugins: dict[str, Plugin] = {}
        try:
            async with asyncio.TaskGroup() as tasks:

                def start(name: str) -> None:
                    plugins[name] = Plugin(name, settings, client, syncer)
                    tasks.create_task(plugins[name].run())

                for name in find_drivers(settings, enabled):
                    start(name)
                if not plugins:
                    log.info("no_hardware", extra={"drivers": enabled})
                if len(plugins) < len(enabled):
                    tasks.create_task(_start_later(settings, [name for name in enabled if name not in plugins], start))
                if settings.http_endpoint:
                    unready = "not ready: see the log"
                    http = HttpServer(settings.http_endpoint, REGISTRY, lambda: _are_ready(plugins), unready)
                    tasks.create_task(http.run())
                tasks.create_task(_stop_when(stopping))
        except* _Stopped:
            log.info("stopped")


def _are_ready(plugins: Mapping[str, Plugin]) -> bool:
    return all(plugin.is_ready() for plugin in plugins.values())


async def _start_later(settings: Settings, missing: list[str], start: Callable[[str], None]) -> None:
    """Serve hardware whose driver is loaded after we have begun."""
    while missing:
        await asyncio.sleep(_LOOK_INTERVAL_S)
        for name in find_drivers(settings, list(BUILDERS)):
            if name in missing:
                log.info("hardware_came", extra={"driver": name})
                missing.remove(name)
                start(name)


class _Stopped(Exception):
    """A signal asked us to end."""


async def _stop_when(stopping: asyncio.Event) -> None:
    await stopping.wait()
    raise _Stopped


def main() -> None:
    allow_deep_objects()
    try:
        settings = parse_settings(sys.argv[1:], os.environ)
    except InvalidObject as error:
        sys.exit(f"Error: {error}")
    configure_logging(settings.log_level)
    log.info("starting", extra={"node": settings.node_name, "driver_root": settings.driver_root})
    gc.freeze()  # what was imported lives as long as the process; collections need not look at it
    gc.set_threshold(*_GC_THRESHOLDS)
    try:
        asyncio.run(run(settings))
    except PartitaError as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
