"""The disk under the checkpoint: full, and a checkpoint that cannot be read. No claim is lost, and nothing loops."""

import json
import re
import zlib
from collections.abc import Callable, Iterator

import pytest

from tests.support.bench import Bench
from tests.support.cluster import Cluster, path, wait_until
from tests.support.plugin import BARE_NODE

DATA = "/var/lib/kubelet/plugins/gpu.nvidia.com"
SLICE, WHOLE = "slice", "whole"


@pytest.fixture
def small_disk(cluster: Cluster, bench: Bench) -> Iterator[Bench]:
    """The plugin's data directory is a file system of 64 KiB."""
    bench.plugin.kill()
    cluster.in_node(BARE_NODE, "mount", "-t", "tmpfs", "-o", "size=64k,mode=755", "small", DATA)
    try:
        bench.plugin.start()
        bench.plugin.wait_registered()
        bench.wait_published()
        yield bench
        cluster.in_node(BARE_NODE, "rm", "-f", f"{DATA}/ballast")
        bench.delete_pod(*bench.pod_names())
    finally:
        bench.plugin.kill()
        cluster.in_node(BARE_NODE, "umount", DATA)


def test_full_disk_fails_claims_by_name_and_they_are_prepared_once_there_is_room(
    cluster: Cluster, small_disk: Bench
) -> None:
    """What could not be written down is not made; a log line says what to free; with room, every pod runs."""
    bench = small_disk
    cluster.in_node(BARE_NODE, "sh", "-c", f"dd if=/dev/zero of={DATA}/ballast bs=4k 2>/dev/null; true")
    names = [f"user{n}" for n in range(8)]  # more than the last page of the journal has room for
    bench.start_mig_pod(*names)

    def told() -> bool:
        return any(
            "the file system is full; free space" in line.get("error", "") for line in bench.plugin.logged("retrying")
        )

    wait_until("the plugin says that the disk is full", told)
    assert len(bench.simulator.instances()) < len(names)
    assert bench.plugin.is_running()
    cluster.in_node(BARE_NODE, "rm", f"{DATA}/ballast")
    bench.wait_running(*names)
    assert len(bench.simulator.instances()) == len(names)
    assert all(bench.see(name).count("MIG 1g.10gb") == 1 for name in names)


def truncate(journal: bytes) -> bytes:
    return journal[: len(journal) // 2]


def empty(journal: bytes) -> bytes:
    return b""


def flip_a_bit(journal: bytes) -> bytes:
    middle = len(journal) // 2
    return journal[:middle] + bytes([journal[middle] ^ 4]) + journal[middle + 1 :]


def write_by_a_newer_version(journal: bytes) -> bytes:
    body = json.dumps({"set": {"shape": "unknown"}}).encode()
    return journal + b"99 %08x %b\n" % (zlib.crc32(body), body)


DAMAGES: tuple[Callable[[bytes], bytes], ...] = (truncate, empty, flip_a_bit, write_by_a_newer_version)


def test_unreadable_checkpoint_is_set_aside_and_rebuilt(bench: Bench) -> None:
    """The claims are found again by CDI files and hardware: pods keep their devices, and give them back in the end."""
    bench.start_mig_pod(SLICE)
    bench.start_gpu_pod(WHOLE)
    bench.wait_running(SLICE, WHOLE)
    held = bench.held_now()
    seen = [bench.see(SLICE), bench.see(WHOLE)]
    for damage in DAMAGES:
        set_aside(bench, damage)
        assert bench.held_now() == held, damage
        assert [bench.see(SLICE), bench.see(WHOLE)] == seen, damage
        bench.plugin.restart()
        bench.plugin.wait_registered()
        assert not bench.plugin.logged("checkpoint_rebuilt"), f"the new journal is readable, after {damage}"
    bench.delete_pod(SLICE, WHOLE)
    bench.wait_clean()


def set_aside(bench: Bench, damage: Callable[[bytes], bytes]) -> None:
    """The plugin finds a damaged journal when it starts: it says so, and keeps it apart."""
    bench.plugin.kill()
    broken = damage(bench.journal.read_bytes())
    bench.journal.write_bytes(broken)
    bench.plugin.start()
    rebuilt = bench.plugin.wait_logged("checkpoint_rebuilt")
    bench.plugin.wait_registered()
    (name,) = re.findall(r"set aside as \S+/(claims\.journal\.unreadable-\d+)", rebuilt["error"])
    aside = bench.data_directory / name
    # Of a torn last line, which says nothing, nothing is kept.
    assert broken.startswith(aside.read_bytes()) and len(aside.read_bytes()) >= broken.rfind(b"\n") + 1
    wait_until("an Event of the node says so", lambda: rebuilt["error"] in node_events(bench))
    aside.unlink()


def node_events(bench: Bench) -> list[str]:
    events = bench.cluster.list(path("v1", "events", namespace="default"), fieldSelector="reason=CheckpointRebuilt")
    return [event["message"] for event in events if event["involvedObject"]["name"] == bench.node]
