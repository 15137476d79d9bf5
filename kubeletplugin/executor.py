"""Carries out hardware steps: in a thread of their own, one plan at a time per GPU, inventory kept current."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import TypeVar

from api.errors import HardwareError
from kubeletplugin.hardware.backend import DeviceLost, NvidiaBackend
from kubeletplugin.model.checkpoint import Checkpoint, ClaimRecord
from kubeletplugin.model.inventory import Gpu, Inventory, MigInstance
from kubeletplugin.model.prepare import gpus_with_instances, plan_unprepare
from kubeletplugin.model.steps import DisableMig, EnableMig, HardwareStep, after_step
from kubeletplugin.threads import call_in

log = logging.getLogger(__name__)

T = TypeVar("T")


class Executor:
    """`inventory` is what the hardware was when last read, and every step of ours since."""

    def __init__(self, backend: NvidiaBackend) -> None:
        self.inventory = Inventory("", "")
        self._backend = backend
        # The back-end lets in one thread at a time, and a single one delivers results in the order of the calls.
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="nvml")
        self._gpus: dict[str, asyncio.Lock] = {}

    async def rescan(self) -> Inventory:
        """Read everything anew. Raises HardwareError."""
        return await self._call(self._read)

    def lose(self, why: str) -> Inventory:
        """Without its driver a node has no devices, and what they are next is not what they were."""
        self.inventory = Inventory("", "", unreadable=(why,))
        return self.inventory

    def _refresh(self, wanted: Collection[str]) -> None:
        gpus = tuple(self._read_again(gpu) if gpu.uuid in wanted else gpu for gpu in self.inventory.gpus)
        if gpus != self.inventory.gpus:
            self.inventory = replace(self.inventory, gpus=gpus)

    def _read_again(self, gpu: Gpu) -> Gpu:
        try:
            return self._backend.read_gpu(gpu.uuid)
        except DeviceLost:
            return replace(gpu, lost=True)  # as an inventory says it

    @asynccontextmanager
    async def holding(self, gpu_uuids: Iterable[str]) -> AsyncIterator[None]:
        """Keep other plans off these GPUs. Always taken in the same order, so no two plans wait for each other."""
        async with AsyncExitStack() as stack:
            for uuid in sorted(set(gpu_uuids)):
                await stack.enter_async_context(self._gpus.setdefault(uuid, asyncio.Lock()))
            yield

    async def run(self, steps: Sequence[HardwareStep]) -> tuple[MigInstance | None, ...]:
        """All steps in order; call while holding their GPUs. Raises HardwareError at the first that fails."""
        return tuple(await self._call(lambda: self._run(steps))) if steps else ()

    async def change(
        self, gpu_uuids: Collection[str], decide: Callable[[], Sequence[HardwareStep]]
    ) -> tuple[MigInstance | None, ...]:
        """Read these GPUs anew, then do what `decide` says of them; call while holding them.

        All in one call of the library's thread, `decide` included: nobody has to wait for two hand-overs. Raises
        HardwareError, and what `decide` raises.
        """

        def work() -> list[MigInstance | None]:
            self._refresh(gpu_uuids)
            return self._run(decide())

        return tuple(await self._call(work))

    async def give_back(self, record: ClaimRecord, checkpoint: Checkpoint) -> None:
        """What a claim holds, where it is now; call while holding its GPUs. Raises HardwareError, Retryable.

        Its instances are not looked for in what was read a while ago: an admin may have made others in their places.
        """
        made_on = gpus_with_instances(record)
        if made_on or plan_unprepare(record, self.inventory, checkpoint):
            await self._call(lambda: self._give_back(record, checkpoint, made_on))

    async def read_processes(self, device_uuid: str) -> tuple[int, ...]:
        """Ids of the processes on a GPU or MIG device. Raises HardwareError."""
        return await self._call(lambda: self._backend.read_processes(device_uuid))

    def _read(self) -> Inventory:
        # Set in the worker thread, as in `_run`: what was read before a step must not overwrite what came of it.
        self.inventory = self._backend.read_inventory()
        return self.inventory

    def _run(self, steps: Sequence[HardwareStep]) -> list[MigInstance | None]:
        results = []
        for step in steps:
            result = self._backend.apply_step(step)
            if isinstance(step, EnableMig | DisableMig):
                self._refresh_where_switched(step)
            else:
                self.inventory = after_step(self.inventory, step, result)
            results.append(result)
        return results

    def _refresh_where_switched(self, step: EnableMig | DisableMig) -> None:
        """With another mode the driver may number the GPU anew, and CDI specs name it by its number."""
        gpu = self.inventory.gpu(step.gpu_uuid)
        if gpu is not None and gpu.mig is not None and gpu.mig.enabled != isinstance(step, EnableMig):
            self._refresh({step.gpu_uuid})

    def _give_back(self, record: ClaimRecord, checkpoint: Checkpoint, made_on: Collection[str]) -> None:
        self._refresh(made_on)
        for step in plan_unprepare(record, self.inventory, checkpoint):
            try:
                self._run((step,))
            except HardwareError as error:
                if not isinstance(step, DisableMig):
                    raise
                # It is in nobody's way: whoever wants the GPU whole plans to leave MIG mode again.
                log.info("mig_mode_stays", extra={"gpu": step.gpu_uuid, "why": str(error)})

    async def _call(self, function: Callable[[], T]) -> T:
        return await call_in(self._worker, function)

    async def watch_events(self, on_event: Callable[[str, int], None]) -> None:
        """Report critical XIDs until cancelled; `on_event` runs in the event loop."""
        loop = asyncio.get_running_loop()
        stopping = False

        def forward(gpu_uuid: str, xid: int) -> None:
            loop.call_soon_threadsafe(on_event, gpu_uuid, xid)

        waiting = asyncio.ensure_future(asyncio.to_thread(self._backend.watch_events, forward, lambda: stopping))
        try:
            await asyncio.shield(waiting)
        finally:
            stopping = True
