"""What a container sees of a node's GPUs, compared with its claim: device nodes, capabilities, NVML, control group."""

import re
from collections.abc import Sequence
from pathlib import Path

from tests.support.bench import Bench
from tests.support.cluster import Cluster, Object, wait_until
from tests.support.hardware import Simulator
from tests.support.manifests import claim, claim_template, mig_request, pod, request
from tests.support.plugin import BARE_NODE

NVIDIA_MAJOR = 195  # Linux Documentation/admin-guide/devices.txt
PARENT = "gpu.nvidia.com/parentUUID"
DEVICE = re.compile(r"gpu-(?P<gpu>\d+)(-mig-.*-(?P<start>\d+))?")


def check_view(bench: Bench, pod_name: str, devices: Sequence[str], container: str = "c0") -> None:
    """The container has the device nodes of these devices and no others, may open no others, and NVML agrees."""

    def run(*command: str) -> str:
        return bench.cluster.in_pod(pod_name, *command, namespace=bench.namespace, container=container)

    nodes, uuids = expected(bench, devices)
    assert set(run("find", "/dev", "-name", "nvidia*", "-type", "c").split()) == nodes
    assert set(re.findall(r"UUID: ([^)]+)\)", run("nvidia-smi", "-L"))) == uuids
    shown = Path("proc/driver/nvidia/version")  # the kernel shows its driver to everybody
    assert run("cat", f"/{shown}") == (bench.simulator.root / shown).read_text()
    mounts = [line.split() for line in run("cat", "/proc/mounts").splitlines()]
    ours = [mount for mount in mounts if "nvidia" in mount[1] or mount[1] == "/proc/driver"]
    writable = [mount[1] for mount in ours if "ro" not in mount[3].split(",")]
    assert writable == []
    for gpu in bench.simulator.mig_modes():
        # Without a driver behind it, a permitted node says that there is no such device; the control group, EPERM.
        script = f"mknod /tmp/gpu{gpu} c {NVIDIA_MAJOR} {gpu}; cat /tmp/gpu{gpu} 2>&1; rm /tmp/gpu{gpu}"
        assert ("not permitted" in run("sh", "-c", script)) == (f"/dev/nvidia{gpu}" not in nodes)


def expected(bench: Bench, devices: Sequence[str]) -> tuple[set[str], set[str]]:
    """Device nodes in the container, and UUIDs that NVML shows there."""
    if not devices:
        return set(), set()
    root, published = bench.simulator.root, bench.devices()
    caps = dict(line.split() for line in (root / "proc/driver/nvidia-caps/mig-minors").read_text().splitlines())
    nodes = {f"/dev/{file.name}" for file in (root / "dev").glob("nvidia[!0-9]*") if not file.is_dir()}
    uuids = set()
    for name in devices:
        match = DEVICE.fullmatch(name)
        assert match, name
        gpu = int(match["gpu"])
        nodes.add(f"/dev/nvidia{gpu}")
        attributes = published.get(f"gpu-{gpu}", published.get(name, {})).get("attributes", {})
        uuids.add((attributes.get("parentUUID") or attributes["uuid"])["string"])
        if match["start"] is not None:
            (instance,) = (i for i in bench.simulator.layout() if (i.gpu, i.start) == (gpu, int(match["start"])))
            uuids.add(instance.uuid)
            for capability in (f"gpu{gpu}/gi{instance.gi}/access", f"gpu{gpu}/gi{instance.gi}/ci{instance.ci}/access"):
                nodes.add(f"/dev/nvidia-caps/nvidia-cap{caps[capability]}")
    return nodes, uuids


def device_names(bench: Bench, claim_name: str, *requests: str) -> list[str]:
    results = bench.allocated(claim_name)
    return [result["device"] for result in results if not requests or result["request"] in requests]


def check_own_claim(bench: Bench, *pods: str) -> None:
    for name in pods:
        check_view(bench, name, device_names(bench, bench.claim_of(name)))


def test_each_kind_of_mig_slice_is_all_that_its_container_sees(bench: Bench) -> None:
    """Every profile of the model, in two rounds of pods that fill both GPUs."""
    first = {"7g.80gb": "seven", "4g.40gb": "four", "2g.20gb": "two", "1g.20gb": "one-double"}
    second = {"3g.40gb": "three", "1g.10gb": "one", "1g.10gb+me": "one-media"}
    for round_of_pods in (first, second):
        for profile, name in round_of_pods.items():
            bench.start_mig_pod(name, profile=profile)
            bench.wait_running(name)
        check_own_claim(bench, *round_of_pods.values())
        bench.delete_pod(*round_of_pods.values())


def test_full_gpu_two_slices_of_one_gpu_and_a_claim_that_no_container_uses(cluster: Cluster, bench: Bench) -> None:
    """A full GPU, and beside it two slices in one container; a container that uses no claim sees nothing at all."""
    one_gpu: Object = {"requests": ["small", "media"], "matchAttribute": PARENT}
    pair = (mig_request("1g.10gb", "small"), mig_request("1g.10gb+me", "media"))
    bench.start_gpu_pod("whole")
    bench.wait_running("whole")
    cluster.apply(
        [
            claim_template("pair", bench.namespace, *pair, constraints=(one_gpu,)),
            pod("pair", bench.namespace, templates=("pair",), node=BARE_NODE),
            claim_template("idle", bench.namespace, mig_request("2g.20gb")),
            pod("idle", bench.namespace, templates=("idle",), node=BARE_NODE, used=False),
        ]
    )
    bench.wait_running("pair", "idle")
    check_own_claim(bench, "whole", "pair")
    unused = cluster.in_pod("idle", "find", "/dev", "-name", "nvidia*", namespace=bench.namespace, container="c0")
    assert unused == ""
    assert len(bench.simulator.layout()) == 3, "also the claim that nobody uses is prepared"
    bench.delete_pod("whole", "pair", "idle")


def test_claim_that_two_pods_share_is_prepared_once_and_kept_until_the_last_ends(
    cluster: Cluster, bench: Bench
) -> None:
    """Both see the same slice; it stays when one ends, and goes with the other."""
    cluster.apply(
        [
            claim("shared", bench.namespace, mig_request()),
            *(pod(name, bench.namespace, claims=("shared",), node=BARE_NODE) for name in ("left", "right")),
        ]
    )
    bench.wait_running("left", "right")
    devices = device_names(bench, "shared")
    check_view(bench, "left", devices)
    check_view(bench, "right", devices)
    before = bench.simulator.layout()
    bench.delete_pod("left")
    assert bench.simulator.layout() == before
    check_view(bench, "right", devices)
    bench.delete_pod("right")


def test_containers_that_use_different_requests_of_a_claim_see_their_own(cluster: Cluster, bench: Bench) -> None:
    """Requests are mapped to the right containers, a chosen alternative of a list of requests among them."""
    wanted = mig_request("9g.none", "none")["exactly"], mig_request("2g.20gb", "some")["exactly"]
    listed = {"name": "listed", "firstAvailable": [{"name": f"f{n}", **each} for n, each in enumerate(wanted)]}
    body = pod("user", bench.namespace, templates=("both",), node=BARE_NODE, containers=3)
    for container, chosen in zip(body["spec"]["containers"], ("mig", "listed", None), strict=True):
        container["resources"] = {"claims": [{"name": "t-both", **({"request": chosen} if chosen else {})}]}
    cluster.apply([claim_template("both", bench.namespace, mig_request(), listed), body])
    bench.wait_running()
    name = bench.claim_of()
    check_view(bench, "user", device_names(bench, name, "mig"), "c0")
    check_view(bench, "user", device_names(bench, name, "listed/f1"), "c1")
    check_view(bench, "user", device_names(bench, name), "c2")
    bench.delete_pod("user")


def test_static_slice_of_an_admin_is_used_and_never_destroyed(
    cluster: Cluster, bench: Bench, simulator: Simulator
) -> None:
    """An instance that an admin makes is offered without restart, seen by its claim alone, and outlives it."""
    simulator.smi("-i", "0", "-mig", "1")
    simulator.smi("mig", "-i", "0", "-cgi", "9:4", "-C")
    (static,) = simulator.layout()

    def offered() -> list[str]:
        uuids = {name: device["attributes"].get("uuid", {}) for name, device in bench.devices().items()}
        return [name for name, uuid in uuids.items() if uuid.get("string") == static.uuid]

    try:
        (name,) = wait_until("the instance is offered", offered)
        cel = f"device.attributes['gpu.nvidia.com'].uuid == '{static.uuid}'"
        guarded = f"'uuid' in device.attributes['gpu.nvidia.com'] && {cel}"
        cluster.apply(claim_template("static", bench.namespace, request("mig", "mig.nvidia.com", cel=guarded)))
        cluster.apply(pod("user", bench.namespace, templates=("static",), node=BARE_NODE))
        bench.start_mig_pod("neighbour")
        bench.wait_running("user", "neighbour")
        assert device_names(bench, bench.claim_of("user")) == [name]
        check_own_claim(bench, "user", "neighbour")
        bench.delete_pod("user", "neighbour")
        assert simulator.layout() == [static]
        assert bench.records() == {}
    finally:
        simulator.smi("mig", "-i", "0", "-dci")
        simulator.smi("mig", "-i", "0", "-dgi")
        simulator.smi("-i", "0", "-mig", "0")
    wait_until("the instance is not offered any more", lambda: not offered())
