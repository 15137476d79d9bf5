"""The daemon's HTTP server, over real sockets: what the kubelet gets, and what strangers cannot take from it."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import pytest

from kubeletplugin.imexdaemon import probes as probes_module
from kubeletplugin.imexdaemon.probes import MOST_CONNECTIONS, MOST_HELD, Probes, State
from kubeletplugin.imexdaemon.readiness import Readiness

KUBELET, STRANGER = "127.0.0.1", "127.0.0.2"
READY, NOT_READY = Readiness(True, "connected"), Readiness(False, "not connected")
UNANSWERED_S = 0.2


class Asker:
    """One open request."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def status(self) -> int:
        """Of the answer, when it comes; 0 when the connection is closed without one."""
        async with asyncio.timeout(10):
            line = await self._reader.readline()
        return int(line.split()[1]) if line else 0

    async def waits(self) -> bool:
        try:
            async with asyncio.timeout(UNANSWERED_S):
                await self._reader.readline()
        except TimeoutError:
            return True
        return False

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()


class World:
    def __init__(self, state: State, port: int, stack: AsyncExitStack) -> None:
        self.state, self._port, self._stack = state, port, stack

    async def connect(self, address: str, request: str = "") -> Asker:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, local_addr=(address, 0))
        writer.write(request.encode())
        asker = Asker(reader, writer)
        self._stack.push_async_callback(asker.close)
        return asker

    async def probe(self, address: str) -> Asker:
        return await self.connect(address, "GET /readyz HTTP/1.1\r\nUser-Agent: kube-probe/1.36\r\n\r\n")


def run(scenario: Callable[[World], Awaitable[None]]) -> None:
    async def main() -> None:
        state = State()
        server = await Probes(state).serve(0)
        async with AsyncExitStack() as stack:
            (port,) = (each.getsockname()[1] for each in server.sockets if each.family == socket.AF_INET)
            await scenario(World(state, port, stack))
        server.close()

    asyncio.run(main())


def test_a_probe_is_held_while_its_kubelet_knows_the_state_and_answered_when_that_changes() -> None:
    async def scenario(it: World) -> None:
        it.state.set(NOT_READY)
        probe = await it.probe(KUBELET)
        assert await probe.waits()
        for value, status in ((READY, 200), (NOT_READY, 503)):
            it.state.set(value)
            assert await probe.status() == status
            probe = await it.probe(KUBELET)
            assert await probe.waits()

    run(scenario)


def test_what_a_stranger_was_told_delays_nothing_for_the_kubelet() -> None:
    async def scenario(it: World) -> None:
        it.state.set(READY)
        assert await (await it.probe(STRANGER)).status() == 200
        assert await (await it.probe(KUBELET)).status() == 200

    run(scenario)


def test_few_probes_are_held_and_the_others_are_answered_at_once() -> None:
    async def scenario(it: World) -> None:
        held = [await it.probe(STRANGER) for _ in range(MOST_HELD)]
        assert all([await each.waits() for each in held])
        assert await (await it.probe(KUBELET)).status() == 503
        for each in held:
            await each.close()
        assert await (await it.probe(KUBELET)).waits()

    run(scenario)


def test_connections_that_say_nothing_are_few_and_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes_module, "_REQUEST_TIMEOUT_S", 0.3)

    async def scenario(it: World) -> None:
        silent = [await it.connect(STRANGER) for _ in range(MOST_CONNECTIONS)]
        await asyncio.sleep(0)
        assert await (await it.connect(STRANGER)).status() == 0
        assert [await each.status() for each in silent] == [0] * MOST_CONNECTIONS
        assert await (await it.connect(KUBELET, "GET /livez HTTP/1.1\r\n\r\n")).status() == 200

    run(scenario)
