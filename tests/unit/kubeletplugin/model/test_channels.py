"""What is decided about ComputeDomain claims on a node."""

from dataclasses import replace
from typing import Any, ClassVar

import pytest

from api.clique import KEY_ATTRIBUTE, Membership, Moment, parse_membership, parse_time
from api.device_config import parse_device_config
from api.errors import ClaimError
from kubeletplugin.model.cdi import DeviceNode, DriverFile, DriverTree
from kubeletplugin.model.channels import (
    Attached,
    DomainUse,
    ImexNodes,
    NoFabric,
    PreparedClaim,
    Unsettled,
    build_channel_spec,
    build_daemon_spec,
    build_domain_devices,
    domain_cdi_id,
    find_fabric,
    read_prepared,
    read_use,
)
from kubeletplugin.model.claims import ClaimRequest, parse_claim
from kubeletplugin.model.devices import Features
from kubeletplugin.model.inventory import Fabric, Gpu, Inventory
from kubeletplugin.model.release import (
    MESSAGE_LENGTH,
    Here,
    Release,
    UnreadableReport,
    Wait,
    check_release,
    parse_report,
)

Json = dict[str, Any]
DRIVER = "compute-domain.nvidia.com"
API = "resource.nvidia.com/v1beta1"
UID, CLUSTER = "5b8e2a0c-0000-4000-8000-000000000001", "7a1d9c3e-0000-4000-8000-000000000002"
CLIQUE = f"{CLUSTER}.1"


def gpu(minor: int, fabric: Fabric | None, lost: bool = False) -> Gpu:
    return Gpu(
        minor=minor,
        uuid=f"GPU-{minor}",
        index=minor,
        pci_bus_id=f"000{minor}:01:00.0",
        product_name="NVIDIA GB200",
        brand="Nvidia",
        architecture="Blackwell",
        cuda_compute_capability="10.0",
        memory_bytes=1 << 37,
        fabric=fabric,
        lost=lost,
    )


def node(*fabrics: Fabric | None) -> Inventory:
    return Inventory("580.105.08", "13.0", tuple(gpu(minor, fabric) for minor, fabric in enumerate(fabrics)))


JOINED = Fabric(CLUSTER, 1, "completed")


class TestFabric:
    def test_all_gpus_in_one_clique(self) -> None:
        assert find_fabric(node(JOINED, JOINED)) == Attached(CLIQUE, CLUSTER)

    @pytest.mark.parametrize(
        "fabric",
        [None, Fabric("", 0, "not_supported"), Fabric("00000000-0000-0000-0000-000000000000", 0, "completed")],
    )
    def test_no_fabric_is_no_fabric(self, fabric: Fabric | None) -> None:
        assert find_fabric(node(fabric, fabric)) == NoFabric()

    @pytest.mark.parametrize(
        ("fabrics", "words"),
        [
            ((JOINED, Fabric(CLUSTER, 1, "in_progress")), "GPU-1 has not joined"),
            ((Fabric(CLUSTER, 1, "not_started"),), "GPU-0 has not joined"),
            ((JOINED, Fabric(CLUSTER, 1, "completed", status=999)), "status 999"),
            ((JOINED, Fabric(CLUSTER, 2, "completed")), "different NVLink cliques"),
            ((JOINED, None), "1 of 2 GPUs"),
        ],
    )
    def test_a_fabric_that_is_not_in_order_is_not_taken_for_none(self, fabrics: Any, words: str) -> None:
        found = find_fabric(node(*fabrics))
        assert isinstance(found, Unsettled)
        assert words in found.reason

    def test_a_lost_gpu_does_not_count(self) -> None:
        inventory = Inventory("580", "13.0", (gpu(0, JOINED), gpu(1, None, lost=True)))
        assert find_fabric(inventory) == Attached(CLIQUE, CLUSTER)

    @pytest.mark.parametrize("gpus", [(), (gpu(0, JOINED, lost=True), gpu(1, None, lost=True))])
    def test_a_node_none_of_whose_gpus_answers_is_not_taken_for_one_without_fabric(self, gpus: tuple[Gpu, ...]) -> None:
        assert isinstance(find_fabric(Inventory("580.105.08", "13.0", gpus)), Unsettled)


class TestDevices:
    def test_names_and_attributes_are_the_reference_drivers_with_the_clique_added(self) -> None:
        channel, daemon = build_domain_devices(Attached(CLIQUE, CLUSTER), Features()).groups[0].devices
        assert channel == {
            "name": "channel-0",
            "attributes": {
                "type": {"string": "channel"},
                "id": {"int": 0},
                "cliqueID": {"string": CLIQUE},
                "nvlinkDomain": {"string": CLUSTER},
            },
            "allowMultipleAllocations": True,
        }
        assert daemon["name"] == "daemon-0"
        assert "allowMultipleAllocations" not in daemon

    def test_the_daemons_device_has_the_nodes_public_key_where_there_is_one(self) -> None:
        def keys(public_key: str) -> list[Any]:
            offer = build_domain_devices(Attached(CLIQUE, CLUSTER), Features(), public_key=public_key)
            return [device["attributes"].get(KEY_ATTRIBUTE) for device in offer.groups[0].devices]

        assert keys("A1") == [None, {"string": "A1"}]
        assert keys("") == [None, None]

    def test_an_old_api_server_gets_a_channel_for_one_claim(self) -> None:
        channel = build_domain_devices(Attached(CLIQUE, CLUSTER), Features(shared=False)).groups[0].devices[0]
        assert "allowMultipleAllocations" not in channel

    def test_without_fabric_there_is_no_clique(self) -> None:
        channel = build_domain_devices(NoFabric(), Features()).groups[0].devices[0]
        assert channel["attributes"] == {"type": {"string": "channel"}, "id": {"int": 0}}

    def test_nothing_is_offered_while_the_clique_is_unknown(self) -> None:
        offered = build_domain_devices(Unsettled("the fabric is down"), Features())
        assert (offered.groups, offered.notes) == ((), ("the fabric is down",))


def claim(
    kind: str = "ComputeDomainChannelConfig", namespace: str = "team", config: bool = True, **extra: Any
) -> ClaimRequest:
    device = "channel-0" if kind == "ComputeDomainChannelConfig" else "daemon-0"
    parameters = {"apiVersion": API, "kind": kind, "domainID": UID, **extra}
    entry = {"source": "FromClaim", "requests": ["it"], "opaque": {"driver": DRIVER, "parameters": parameters}}
    result = {"request": "it", "driver": DRIVER, "pool": "node-1", "device": device, "shareID": "share-1"}
    raw = {
        "metadata": {"uid": "claim-uid", "namespace": namespace, "name": "claim"},
        "status": {"allocation": {"devices": {"results": [result], "config": [entry] if config else []}}},
    }
    return parse_claim(raw, DRIVER, "node-1", "claim-uid", parse_device_config)


def membership(namespace: str = "team", draining: bool = False, **member: Any) -> Membership:
    return parse_membership(
        {
            "metadata": {"name": f"{UID}.{CLIQUE}"},
            "domainName": "train",
            "domainNamespace": namespace,
            "draining": draining,
            "daemons": [{"nodeName": "node-1", "index": 0, **member}] if member else [],
        }
    )


CHANNEL = DomainUse("channel", UID)


class TestUse:
    def test_channels(self) -> None:
        assert read_use(claim(), "partita-system") == CHANNEL
        assert read_use(claim(allocationMode="All"), "partita-system").all_channels

    def test_daemons_are_served_in_the_drivers_namespace_only(self) -> None:
        daemon = claim("ComputeDomainDaemonConfig", namespace="partita-system")
        assert read_use(daemon, "partita-system") == DomainUse("daemon", UID)
        with pytest.raises(ClaimError, match="namespace partita-system only") as caught:
            read_use(claim("ComputeDomainDaemonConfig"), "partita-system")
        assert caught.value.reason == "WrongNamespace"

    def test_a_claim_without_config_is_told_what_is_right(self) -> None:
        with pytest.raises(ClaimError, match=r"spec\.channel\.resourceClaimTemplate"):
            read_use(claim(config=False), "partita-system")

    def test_a_malformed_config_is_an_error_of_the_claim(self) -> None:
        with pytest.raises(ClaimError, match="domainId: unknown field"):
            claim(domainId=UID)


class TestRelease:
    def test_a_released_member_gets_its_channel(self) -> None:
        assert check_release(claim(), CHANNEL, membership(released=True), "node-1") == Release()

    def test_whoever_waits_is_told_for_what(self) -> None:
        waits = {
            "no members in this node's NVLink clique yet": None,
            "node node-1 is not a member of ComputeDomain team/train yet": membership(),
            "node node-1 is not connected in ComputeDomain team/train yet": membership(released=False),
            "node-1 is used by ComputeDomain other/first": membership(
                message="node-1 is used by ComputeDomain other/first"
            ),
        }
        for words, seen in waits.items():
            decision = check_release(claim(), CHANNEL, seen, "node-1")
            assert isinstance(decision, Wait)
            assert words in decision.reason

    def test_a_foreign_namespace_is_refused_for_good_even_when_released(self) -> None:
        with pytest.raises(ClaimError) as caught:
            check_release(claim(namespace="intruder"), CHANNEL, membership(released=True), "node-1")
        assert caught.value.reason == "WrongNamespace"
        assert "team" not in str(caught.value)

    def test_a_draining_domain_takes_no_new_claims(self) -> None:
        with pytest.raises(ClaimError, match="team/train is being deleted"):
            check_release(claim(), CHANNEL, membership(draining=True, released=True), "node-1")

    @pytest.mark.parametrize(
        ("when", "is_known", "member", "served"),
        [
            ("2026-01-01T00:00:09Z", True, True, True),
            ("2026-01-01T00:00:11Z", True, True, False),
            ("2026-01-01T00:00:09Z", False, True, True),
            ("2026-01-01T00:00:09Z", False, False, False),
        ],
    )
    def test_a_draining_domain_serves_the_claims_that_it_had_when_it_was_deleted(
        self, when: str, is_known: bool, member: bool, served: bool
    ) -> None:
        changes: Json = {"released": True} if member else {}
        seen = replace(membership(draining=True, **changes), deleted_at=parse_time("2026-01-01T00:00:10Z"))
        request = replace(claim(), allocated=Moment(parse_time(when), is_known))
        if served:
            assert check_release(request, CHANNEL, seen, "node-1") == Release()
        else:
            with pytest.raises(ClaimError, match="takes no new claims"):
                check_release(request, CHANNEL, seen, "node-1")

    def test_a_release_policy_that_is_not_the_domains_is_refused(self) -> None:
        seen = replace(membership(released=True), release_policy="Connected")
        assert check_release(claim(), replace(CHANNEL, release_policy="Connected"), seen, "node-1") == Release()
        with pytest.raises(ClaimError, match="right would be Connected, or none"):
            check_release(claim(), replace(CHANNEL, release_policy="AllNodes"), seen, "node-1")

    def test_whoever_waits_for_its_nodes_daemon_is_told_what_that_says(self) -> None:
        seen = membership(released=False, ipAddress="10.0.0.1", message="daemon pod d is not connected yet")
        words = "not connected to node 1 (10.0.0.2)"
        for change, told in (({}, f": {words}"), ({"address": "10.0.0.9"}, "connected yet")):
            report = parse_report({**self.REPORT, "ready": False, "message": words, **change})
            decision = check_release(claim(), CHANNEL, seen, "node-1", Here(report, alive=True))
            assert isinstance(decision, Wait)
            assert decision.reason.endswith(told)

    def test_a_daemons_words_are_cut(self) -> None:
        report = parse_report({**self.REPORT, "message": "x" * 10_000})
        assert report is not None
        assert len(report.message) == MESSAGE_LENGTH

    REPORT: ClassVar[dict[str, Any]] = {"computeDomain": UID, "cliqueID": CLIQUE, "address": "10.0.0.1", "ready": True}

    @pytest.mark.parametrize(
        ("policy", "change", "released"),
        [
            ("Connected", {}, True),
            ("Connected", {"ready": False}, False),
            ("Connected", {"ready": "yes"}, False),
            ("Connected", {"address": "10.0.0.9"}, False),
            ("Connected", {"address": ""}, False),
            ("Connected", {"cliqueID": "another.1"}, False),
            ("Connected", {"computeDomain": "another"}, False),
            ("AllNodes", {}, False),
            ("", {}, False),
        ],
    )
    def test_by_policy_the_word_of_the_nodes_own_current_daemon_is_enough(
        self, policy: str, change: Json, released: bool
    ) -> None:
        seen = replace(membership(released=False, ipAddress="10.0.0.1"), release_policy=policy)
        decision = check_release(
            claim(), CHANNEL, seen, "node-1", Here(parse_report({**self.REPORT, **change}), alive=True)
        )
        assert isinstance(decision, Release) is released

    @pytest.mark.parametrize("policy", ["Connected", "AllNodes", ""])
    def test_a_living_daemon_that_is_not_connected_releases_nothing_whatever_was_said_of_it(self, policy: str) -> None:
        """It may be another one in the same pod, of which the controller has not heard yet."""
        seen = replace(membership(released=True, ipAddress="10.0.0.1"), release_policy=policy)
        report = parse_report({**self.REPORT, "ready": False, "message": "nvidia-imex does not run"})
        decision = check_release(claim(), CHANNEL, seen, "node-1", Here(report, alive=True))
        assert isinstance(decision, Wait)
        assert decision.reason.endswith(": nvidia-imex does not run")

    def test_a_report_that_cannot_be_read_may_be_a_no(self) -> None:
        here = Here(UnreadableReport("status.json cannot be read: Input/output error"), alive=True)
        decision = check_release(claim(), CHANNEL, membership(released=True), "node-1", here)
        assert isinstance(decision, Wait)
        assert "status.json cannot be read" in decision.reason

    def test_a_daemon_without_an_address_in_the_membership_is_not_the_one_it_means(self) -> None:
        seen = replace(membership(released=False, ipAddress=""), release_policy="Connected")
        report = parse_report({**self.REPORT, "address": ""})
        assert isinstance(check_release(claim(), CHANNEL, seen, "node-1", Here(report, alive=True)), Wait)

    def test_a_daemon_that_is_connected_opens_nothing_to_another_namespace(self) -> None:
        seen = replace(membership(released=False, ipAddress="10.0.0.1"), release_policy="Connected")
        with pytest.raises(ClaimError):
            check_release(
                claim(namespace="intruder"), CHANNEL, seen, "node-1", Here(parse_report(self.REPORT), alive=True)
            )

    @pytest.mark.parametrize("released", [True, False])
    def test_a_daemon_that_has_died_releases_nothing_whatever_was_said_of_it(self, released: bool) -> None:
        seen = replace(membership(released=released, ipAddress="10.0.0.1"), release_policy="Connected")
        decision = check_release(claim(), CHANNEL, seen, "node-1", Here(parse_report(self.REPORT), alive=False))
        assert isinstance(decision, Wait)
        assert "its daemon on this node has ended" in decision.reason

    @pytest.mark.parametrize("released", [True, False])
    def test_of_a_daemon_that_does_not_show_whether_it_lives_the_controllers_word_counts(self, released: bool) -> None:
        seen = replace(membership(released=released, ipAddress="10.0.0.1"), release_policy="Connected")
        decision = check_release(claim(), CHANNEL, seen, "node-1", Here(parse_report(self.REPORT)))
        assert isinstance(decision, Release) is released

    @pytest.mark.parametrize("released", [True, False])
    def test_a_node_on_which_another_domain_has_claims_releases_nothing_and_names_them(self, released: bool) -> None:
        others = tuple(PreparedClaim(f"u{n}", f"team-a/c{n}", "channel", "another") for n in range(5))
        decision = check_release(claim(), CHANNEL, membership(released=released), "node-1", Here(others=others))
        assert isinstance(decision, Wait)
        assert decision.reason.endswith(
            "claim team-a/c0 (channel), claim team-a/c1 (channel), claim team-a/c2 (channel) and 2 more"
        )

    def test_a_foreign_claim_is_refused_for_good_also_while_another_domain_has_the_node(self) -> None:
        others = (PreparedClaim("u", "team-a/c", "channel", "another"),)
        with pytest.raises(ClaimError):
            check_release(claim(namespace="intruder"), CHANNEL, membership(), "node-1", Here(others=others))

    def test_a_claim_whose_pods_are_being_deleted_is_not_waited_for(self) -> None:
        waiting = {"metadata": {"name": f"{UID}.{CLIQUE}"}, "domainNamespace": "team", "abandonedClaims": ["claim-uid"]}
        with pytest.raises(ClaimError, match="are being deleted"):
            check_release(claim(), CHANNEL, parse_membership(waiting), "node-1")


class TestCdi:
    def test_a_single_channel_by_number_with_the_status_of_its_daemon(self) -> None:
        spec = build_channel_spec(claim(), CHANNEL, 240, "/var/domains/x/status", ())
        device = spec["devices"][0]
        assert f"{spec['kind']}={device['name']}" == domain_cdi_id(claim(), CHANNEL)
        edits = device["containerEdits"]
        path = "/dev/nvidia-caps-imex-channels/channel0"
        assert edits["deviceNodes"] == [{"path": path, "type": "c", "major": 240, "minor": 0, "fileMode": 0o666}]
        assert edits["mounts"][0]["containerPath"] == "/run/partita/compute-domain"
        assert "ro" in edits["mounts"][0]["options"]
        assert set(spec["annotations"].values()) == {UID, "team/claim"}

    def test_all_channels(self) -> None:
        spec = build_channel_spec(claim(), DomainUse("channel", UID, all_channels=True), 240, "/s", ())
        minors = [entry["minor"] for entry in spec["devices"][0]["containerEdits"]["deviceNodes"]]
        assert minors == list(range(2048))

    def test_a_daemon_gets_its_capability_the_programs_and_its_directory(self) -> None:
        capability = DeviceNode(
            "/dev/nvidia-caps/nvidia-cap9", "/run/nvidia/driver/dev/nvidia-caps/nvidia-cap9", 238, 9
        )
        imex = ImexNodes(240, capability, ("/usr/bin/nvidia-imex", "/usr/bin/nvidia-imex-ctl"))
        control = DeviceNode("/dev/nvidiactl", "/run/nvidia/driver/dev/nvidiactl", 195, 255)
        folder = "/usr/lib/x86_64-linux-gnu"
        nvml = DriverFile(f"{folder}/libnvidia-ml.so.580", (f"{folder}/libnvidia-ml.so", f"{folder}/libnvidia-ml.so.1"))
        library = DriverFile(f"{folder}/libnvidia-gpucomp.so.580")
        tree = DriverTree("/run/nvidia/driver", "/run/nvidia/driver", (control,), libraries=(nvml, library))
        request = claim("ComputeDomainDaemonConfig", namespace="partita-system")
        spec = build_daemon_spec(request, DomainUse("daemon", UID), imex, tree, "/var/domains/x", ("p1",))
        assert read_prepared("claim-uid", spec).pods == ("p1",)
        edits = spec["devices"][0]["containerEdits"]
        assert [entry["path"] for entry in edits["deviceNodes"]] == ["/dev/nvidiactl", "/dev/nvidia-caps/nvidia-cap9"]
        mounts = {mount["containerPath"]: mount for mount in edits["mounts"]}
        assert mounts["/usr/bin/nvidia-imex"]["hostPath"] == "/run/nvidia/driver/usr/bin/nvidia-imex"
        folders = {path: (mounts[path]["hostPath"], mounts[path]["options"][0]) for path in mounts if "/imexd" in path}
        assert folders == {
            "/imexd": ("/var/domains/x/work", "rw"),
            "/imexd/status": ("/var/domains/x/status", "rw"),
            "/imexd/membership": ("/var/domains/x/membership", "ro"),
        }
        libraries = [path for path in mounts if ".so" in path]
        assert libraries == [f"{folder}/{name}" for name in ("libnvidia-ml.so.1", "libnvidia-gpucomp.so.580")]
        assert f"LD_LIBRARY_PATH={folder}" in edits["env"]
        assert "hooks" not in edits
