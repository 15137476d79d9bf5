"""Claims come and go, admins repartition, power fails at any moment: what is held and made always converges."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from api.device_config import parse_device_config
from kubeletplugin.model.checkpoint import ClaimState, MigHolding
from kubeletplugin.model.devices import build_devices
from kubeletplugin.model.inventory import Gpu, Placement
from kubeletplugin.model.slices import build_slices
from kubeletplugin.model.steps import DeleteMigInstance, DisableMig
from tests.scenarios.allocator import free_devices
from tests.scenarios.hardware import Hardware, a100, h100, inventory, l40s, rtx
from tests.scenarios.node import DRIVER, POOL, Node, PowerCut, claim

NODES: dict[str, tuple[Gpu, ...]] = {
    "hopper": (h100(0), h100(1)),
    "ampere": (a100(0, enabled=True), a100(1)),
    "mixed": (rtx(0), h100(1), a100(2, enabled=True), l40s(3)),
}
CUT = st.one_of(st.none(), st.integers(0, 12))


class Plugin(RuleBasedStateMachine):
    """Kubelet, scheduler and admin as rules; the node's plugin as what answers them."""

    @initialize(kind=st.sampled_from(sorted(NODES)), writes_back=st.booleans())
    def start(self, kind: str, writes_back: bool) -> None:
        self.node = Node(Hardware(inventory(*NODES[kind])), writes_back=writes_back)
        self.claims: dict[str, dict[str, Any]] = {}
        self.admins: dict[tuple[str, Placement], str] = {}
        self.node.watchers.append(self.check_admins)
        self.number = 0
        self.node.restart()

    @rule(data=st.data(), count=st.integers(1, 3), cut=CUT, whole_node=st.booleans())
    def claim_arrives(self, data: st.DataObject, count: int, cut: int | None, whole_node: bool) -> None:
        allocated = self.allocated()
        names: list[str] = []
        for _ in range(count):
            free = [device["name"] for device in free_devices(self.slices(), [*allocated, *names])]
            if free:
                names.append(data.draw(st.sampled_from(free)))
        if names:
            self.number += 1
            self.claims[f"c{self.number}"] = claim(f"c{self.number}", *names)
            self.with_power(cut, self.kubelet_retries, whole_node)

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), cut=CUT, whole_node=st.booleans(), replaced=st.booleans())
    def claim_leaves(self, data: st.DataObject, cut: int | None, whole_node: bool, replaced: bool) -> None:
        uid = data.draw(st.sampled_from(sorted(self.claims)))
        if replaced:
            self.admin_replaces(uid)
        self.with_power(cut, lambda: self.node.unprepare(uid), whole_node)
        self.node.unprepare(uid)  # kubelet asks until it is told that it is done
        del self.claims[uid]

    @rule(cut=CUT)
    def kubelet_restarts(self, cut: int | None) -> None:
        self.with_power(cut, self.kubelet_retries)

    @rule(cut=CUT, again=CUT)
    def plugin_restarts(self, cut: int | None, again: int | None) -> None:
        self.with_power(cut, self.node.restart)
        self.with_power(again, self.node.restart)

    @rule(data=st.data(), cut=CUT, again=CUT)
    def journal_is_spoilt(self, data: st.DataObject, cut: int | None, again: int | None) -> None:
        self.node.effects_left = cut
        try:
            self.kubelet_retries()
        except PowerCut:
            self.node.effects_left = None
        self.node.journal = data.draw(st.sampled_from([b"", b"1 00000000 {}\n", b"9 00000000 {}\n"]))
        self.with_power(again, lambda: self.node.restart_with(list(self.claims.values()), set(self.admins.values())))

    @rule(cut=CUT)
    def node_reboots(self, cut: int | None) -> None:
        self.reboot()
        self.with_power(cut, self.node.restart)

    @rule(data=st.data())
    def admin_creates(self, data: st.DataObject) -> None:
        free = [
            (gpu.uuid, profile.profile_id, place)
            for gpu in self.node.hardware.inventory.gpus
            if gpu.mig is not None and (gpu.mig.enabled or not gpu.mig.mode_change_needs_reset)
            if f"gpu-{gpu.minor}" not in self.allocated()
            for profile in gpu.mig.profiles
            for place in profile.placements
            if not any(place.overlaps(other) for other in self.taken(gpu))
            if sum(i.profile_id == profile.profile_id for i in gpu.mig.instances) < profile.max_instances
        ]
        if free:
            gpu_uuid, profile_id, place = data.draw(st.sampled_from(free))
            self.node.hardware, made = self.node.hardware.with_admin_instance(gpu_uuid, profile_id, place)
            self.admins[gpu_uuid, place] = made.uuid or ""

    @precondition(lambda self: self.admins)
    @rule(data=st.data())
    def admin_deletes(self, data: st.DataObject) -> None:
        names = self.allocated()
        idle = [
            (gpu_uuid, place)
            for gpu_uuid, place in sorted(self.admins)
            if not any(self.names_place(name, gpu_uuid, place) for name in names)
        ]
        if idle:
            gpu_uuid, place = data.draw(st.sampled_from(idle))
            del self.admins[gpu_uuid, place]
            profile_id = self.node.hardware.instances()[gpu_uuid, place].profile_id
            self.node.hardware, _ = self.node.hardware.apply(DeleteMigInstance(gpu_uuid, profile_id, place))
            gpu = self.node.hardware.inventory.gpu(gpu_uuid)
            if gpu and gpu.mig and not gpu.mig.mode_change_needs_reset:
                self.node.hardware, _ = self.node.hardware.apply(DisableMig(gpu_uuid))

    def admin_replaces(self, uid: str) -> None:
        """The claim's instances, by others of the same profiles in the same places."""
        for device in self.node.checkpoint.records[uid].devices:
            held = device.holding
            if isinstance(held, MigHolding) and held.owned:
                hardware, _ = self.node.hardware.apply(
                    DeleteMigInstance(held.gpu_uuid, held.profile_id, held.placement)
                )
                self.node.hardware, made = hardware.with_admin_instance(held.gpu_uuid, held.profile_id, held.placement)
                self.admins[held.gpu_uuid, held.placement] = made.uuid or ""

    @invariant()
    def everything_converged(self) -> None:
        if not hasattr(self, "node"):
            return
        node = self.node
        assert set(node.checkpoint.records) == set(self.claims)
        assert set(node.cdi) == set(self.claims)
        expected = dict(self.admins)
        for uid, record in node.checkpoint.records.items():
            assert record.state is ClaimState.COMPLETED
            names = [r["device"] for r in self.claims[uid]["status"]["allocation"]["devices"]["results"]]
            assert [device.device for device in record.devices] == names
            for device in record.devices:
                if isinstance(device.holding, MigHolding):
                    place = (device.holding.gpu_uuid, device.holding.placement)
                    assert place not in expected or not device.holding.owned, "held twice"
                    expected[place] = device.holding.uuid or ""
        assert {place: i.uuid for place, i in node.hardware.instances().items()} == expected
        self.check_modes()

    def check_modes(self) -> None:
        """MIG mode is on where something needs it, and off where nothing does and it is ours to change."""
        for gpu in self.node.hardware.inventory.gpus:
            if gpu.mig is not None and not gpu.mig.mode_change_needs_reset:
                assert gpu.mig.enabled == bool(gpu.mig.instances), gpu.uuid

    def check_admins(self) -> None:
        found = self.node.hardware.instances()
        assert {place: found[place].uuid for place in self.admins if place in found} == self.admins

    def reboot(self) -> None:
        self.admins = {}
        self.node.reboot()

    def with_power(self, cut: int | None, action: Any, whole_node: bool = False) -> None:
        """Do it; where the program, or the whole node, is stopped after `cut` effects, start again until everything is
        as asked for."""
        self.node.effects_left = cut
        try:
            action()
        except PowerCut:
            self.node.effects_left = None
            if whole_node:
                self.reboot()
            self.node.restart_with(list(self.claims.values()), set(self.admins.values()))
        self.node.effects_left = None
        self.kubelet_retries()

    def kubelet_retries(self) -> None:
        for uid in sorted(self.claims):
            self.node.prepare(self.claims[uid])

    def allocated(self) -> list[str]:
        return [
            result["device"]
            for raw in self.claims.values()
            for result in raw["status"]["allocation"]["devices"]["results"]
        ]

    def slices(self) -> list[dict[str, Any]]:
        return build_slices(DRIVER, POOL, POOL, build_devices(self.node.hardware.inventory, self.node.checkpoint))

    def taken(self, gpu: Gpu) -> Iterator[Placement]:
        assert gpu.mig is not None
        yield from (instance.placement for instance in gpu.mig.instances)

    def names_place(self, name: str, gpu_uuid: str, place: Placement) -> bool:
        record = next((d for r in self.node.checkpoint.records.values() for d in r.devices if d.device == name), None)
        if record is None or not isinstance(record.holding, MigHolding):
            return False
        return record.holding.gpu_uuid == gpu_uuid and record.holding.placement == place


Plugin.TestCase.settings = settings(max_examples=120, stateful_step_count=25)


class TestAnyOrderOfEvents(Plugin.TestCase):
    """Nothing is leaked, nothing is held twice, what an admin made stays, every claim gets what it was allocated."""


STORIES = {
    "one partition": [claim("a", "gpu-0-mig-1g10gb-19-5")],
    "two partitions of one GPU in one claim": [claim("a", "gpu-0-mig-3g40gb-9-4", "gpu-0-mig-3g40gb-9-0")],
    "a GPU and a partition of another": [claim("a", "gpu-1", "gpu-0-mig-7g80gb-0-0")],
    "two claims on one GPU": [claim("a", "gpu-0-mig-1g10gb-19-5"), claim("b", "gpu-0-mig-1g10gb-19-4")],
}


@pytest.mark.parametrize("whole_node", [False, True], ids=["program", "node"])
@pytest.mark.parametrize("story", sorted(STORIES))
def test_power_may_fail_at_every_single_moment(story: str, whole_node: bool) -> None:
    """Prepare all, start again, unprepare all; the program or its whole node is stopped after every effect in turn. The
    end is always the same."""
    for cut in range(200):
        node = Node(Hardware(inventory(h100(0), h100(1))))
        node.effects_left = cut
        was_cut = False
        for act in ("prepare", "restart", "unprepare"):
            try:
                run_act(node, act, STORIES[story])
            except PowerCut:
                was_cut, node.effects_left = True, None
                if whole_node:
                    node.reboot()
                node.restart()
                run_act(node, act, STORIES[story])
            if act == "prepare":
                assert all(r.state is ClaimState.COMPLETED for r in node.checkpoint.records.values())
                assert len(node.checkpoint.records) == len(node.cdi) == len(STORIES[story])
        assert node.hardware.instances() == {}
        assert not any(gpu.mig and gpu.mig.enabled for gpu in node.hardware.inventory.gpus)
        assert (node.cdi, node.checkpoint.records) == ({}, {})
        if not was_cut:
            return
    pytest.fail("the story never ran to its end without a cut")


def run_act(node: Node, act: str, claims: list[dict[str, Any]]) -> None:
    match act:
        case "prepare":
            for raw in claims:
                node.prepare(raw)
        case "restart":
            node.restart()
        case "unprepare":
            for raw in claims:
                node.unprepare(raw["metadata"]["uid"])


def test_configs_reach_the_hardware_only_as_data() -> None:
    """A config parses the same whatever order its keys are in, so equal claims are prepared equally."""
    one = {"apiVersion": "resource.nvidia.com/v1beta1", "kind": "GpuConfig", "sharing": {"strategy": "TimeSlicing"}}
    other = dict(reversed(one.items()))
    assert parse_device_config(one) is parse_device_config(other)
