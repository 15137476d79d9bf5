"""A node's GPUs as a value that steps change, its disk, its API server, and as many plugins on it as a test wants."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from api.client import Json, NotFound
from api.ref import Ref
from kubeletplugin.cdi_files import CdiFiles
from kubeletplugin.crash import CrashPoint
from kubeletplugin.executor import Executor
from kubeletplugin.files import Store
from kubeletplugin.hardware.backend import DeviceLost, LibraryMissing
from kubeletplugin.model.checkpoint import ClaimRecord
from kubeletplugin.model.devices import Features
from kubeletplugin.model.inventory import Gpu, Inventory, MigInstance, Placement
from kubeletplugin.model.steps import DeleteMigInstance, HardwareStep
from kubeletplugin.nvidia import NvidiaDriver
from kubeletplugin.server import ClaimRef
from tests.scenarios.hardware import Hardware, h100, inventory
from tests.scenarios.node import DRIVER, POOL, TREE, claim


class Rack:
    """`kubeletplugin.hardware.backend.NvidiaBackend`, shared by all plugins of the node as the hardware is."""

    def __init__(self, *gpus: Gpu) -> None:
        self.hardware = Hardware(inventory(*gpus))
        self.before: Callable[[HardwareStep], None] = lambda step: None
        """Called before every step; may raise, or change the hardware as an admin does."""
        self.lost: set[str] = set()
        self.is_unloaded = False
        """NVIDIA's kernel module is away."""

    def read_inventory(self) -> Inventory:
        if self.is_unloaded:
            raise LibraryMissing("reading the GPUs: Driver Not Loaded")
        return self.hardware.inventory

    def read_gpu(self, uuid: str) -> Gpu:
        gpu = self.hardware.inventory.gpu(uuid)
        if gpu is None or uuid in self.lost:
            raise DeviceLost(f"GPU {uuid}: GPU is lost")
        return gpu

    def apply_step(self, step: HardwareStep) -> MigInstance | None:
        self.before(step)
        self.hardware, result = self.hardware.apply(step)
        return result

    def read_processes(self, uuid: str) -> tuple[int, ...]:
        return ()

    def watch_events(self, on_event: Callable[[str, int], None], stopped: Callable[[], bool]) -> None:
        while not stopped():
            time.sleep(0.01)

    # What an admin does with nvidia-smi.

    def create(self, gpu: Gpu, profile_id: int, placement: Placement) -> MigInstance:
        self.hardware, made = self.hardware.with_admin_instance(gpu.uuid, profile_id, placement)
        return made

    def delete(self, gpu: Gpu, profile_id: int, placement: Placement) -> None:
        self.hardware, _ = self.hardware.apply(DeleteMigInstance(gpu.uuid, profile_id, placement))

    def instances(self) -> list[MigInstance]:
        return list(self.hardware.instances().values())


class Api:
    """The claims that there are, by name; `refusal` is raised instead of any answer."""

    def __init__(self) -> None:
        self.claims: dict[str, Json] = {}
        self.slow: dict[str, asyncio.Event] = {}
        """Claims of which it says nothing before that."""
        self.refusal: Exception | None = None
        self.asked = 0

    async def get(self, path: str) -> Json:
        self.asked += 1
        if self.refusal is not None:
            raise self.refusal
        name = path.rpartition("/")[2]
        if name in self.slow:
            await self.slow[name].wait()
        found = self.claims.get(name)
        if found is None:
            raise NotFound(f"GET {path}: not found (404)", 404)
        return found

    async def list(self, path: str, **query: str) -> list[Json]:
        self.asked += 1
        return list(self.claims.values()) if path.endswith("resourceclaims") else []


class Board:
    """Where Events go."""

    def __init__(self) -> None:
        self.pinned: list[str] = []

    def warn(self, regarding: Ref, reason: str, action: str, note: str) -> None:
        self.pinned.append(reason)


class Files:
    """The driver's files, as the test says."""

    def __init__(self) -> None:
        self.tree = TREE

    def read(self, inventory: Inventory) -> None:
        return

    async def read_again(self, inventory: Inventory) -> None:
        return


class Node:
    """What plugins on it share."""

    def __init__(self, folder: Path, *gpus: Gpu) -> None:
        self.rack = Rack(*(gpus or (h100(0), h100(1))))
        self.api = Api()
        self.board = Board()
        self.folder = folder
        self.cdi = CdiFiles(folder / "cdi", f"k8s.{DRIVER}")
        self.driver_files = Files()
        (folder / "boot_id").write_text("boot-1\n")

    def plugin(self, grace_s: float = 300.0, rescan_s: float = 3600.0) -> "Plugin":
        """What it has read stays as it is, unless it has a reason to look."""
        return Plugin(self, grace_s, rescan_s)

    def files(self, *parts: str) -> list[str]:
        """Names in a folder of the node's disk."""
        folder = self.folder.joinpath(*parts)
        return sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []


class Plugin:
    """One instance of the program."""

    def __init__(self, node: Node, grace_s: float, rescan_s: float) -> None:
        self._node = node
        loose: Any = (node.api, node.board, node.rack, node.driver_files)
        client, events, backend, files = loose
        self.store = Store(node.folder / "plugin", DRIVER, ThreadPoolExecutor(1))
        self.driver = NvidiaDriver(
            node=POOL,
            client=client,
            events=events,
            executor=Executor(backend),
            store=self.store,
            cdi=node.cdi,
            files=files,
            crash=CrashPoint(""),
            ignored_xids=frozenset(),
            rescan_interval_s=rescan_s,
            stale_grace_s=grace_s,
            boot_id_path=node.folder / "boot_id",
        )

    async def prepare(self, uid: str, *devices: str) -> ClaimRecord:
        """A claim that the API server has, or makes known here."""
        raw = self._node.api.claims.setdefault(f"claim-{uid}", claim(uid, *devices))
        await self.driver.prepare(raw, ref(uid))
        return self.store.checkpoint.records[uid]

    async def unprepare(self, uid: str) -> None:
        await self.driver.unprepare(ref(uid))

    def offered(self) -> set[str]:
        devices = self.driver.offer(Features())
        return {device["name"] for group in devices.groups for device in group.devices}

    async def sweep(self) -> None:
        """Look for stale claims as a running plugin does, for a moment."""
        async with self.sweeping():
            await asyncio.sleep(0.1)

    @asynccontextmanager
    async def sweeping(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.driver._leftovers.run(lambda: None))
        yield
        task.cancel()
        await asyncio.wait((task,))


def ref(uid: str) -> ClaimRef:
    return ClaimRef("default", f"claim-{uid}", uid)
