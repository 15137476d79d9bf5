"""Hosts that are network namespaces of their own on one bridge, with the simulated IMEX programs on them."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from simulator.build import build

from tests.contract.imex.imex_hosts import Host, ip


@pytest.fixture(scope="session")
def programs() -> Path:
    """The folder of the simulated programs, built."""
    return build()


@pytest.fixture
def hosts(tmp_path: Path, programs: Path) -> Iterator[list[Host]]:
    """Three hosts that reach each other."""
    tag = f"im{os.getpid() % 100000}"
    bridge = f"{tag}br"
    made: list[Host] = []
    ip("netns", "add", bridge)
    try:
        ip("-n", bridge, "link", "add", "br0", "type", "bridge")
        ip("-n", bridge, "link", "set", "br0", "up")
        for index in range(3):
            folder = tmp_path / f"host-{index}"
            folder.mkdir()
            host = Host(f"{tag}h{index}", f"10.99.0.{index + 1}", folder, programs)
            ip("netns", "add", host.name)
            made.append(host)
            ip("-n", host.name, "link", "set", "lo", "up")
            peer = ("peer", "name", f"p{index}", "netns", bridge)
            ip("-n", host.name, "link", "add", "eth0", "type", "veth", *peer)
            ip("-n", bridge, "link", "set", f"p{index}", "master", "br0", "up")
            ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", "eth0")
            ip("-n", host.name, "link", "set", "eth0", "up")
        yield made
    finally:
        for host in made:
            host.stop()
            ip("netns", "del", host.name)
        ip("netns", "del", bridge)
