"""Partition on claim: modes never mix, nothing is given twice, everything drains, whatever the order of events."""

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from api.errors import Busy, ClaimError
from kubeletplugin.model.amd_partitions import Mode
from tests.scenarios.amd.world import Killed, Node, build_node, claim_names

NO_SHRINK = (Phase.explicit, Phase.reuse, Phase.generate)
CPX_NPS4 = "gpu-0000-05-00-0-cpx-nps4"
CPX_NPS1 = "gpu-0000-05-00-0-cpx-nps1"

events = st.lists(
    st.tuples(
        st.sampled_from(["allocate", "allocate", "prepare", "prepare", "release", "publish", "kill", "reboot"]),
        st.integers(0, 2**16),
    ),
    max_size=60,
)


def run(node: Node, script: list[tuple[str, int]], *, always_publish: bool) -> int:
    """How often a claim that the scheduler had allocated was refused."""
    refused, names = 0, claim_names()
    for kind, choice in script:
        waiting = sorted(node.allocations)
        if kind == "allocate" and (free := node.allocatable()):
            node.allocate(next(names), free[choice % len(free)])
        elif kind in ("prepare", "kill") and waiting:
            node.kill_after = choice % 5 if kind == "kill" else None
            try:
                node.prepare(waiting[choice % len(waiting)])
            except (Busy, ClaimError):
                refused += 1
            except Killed:
                node.restart()
            node.kill_after = None
        elif kind == "release" and waiting:
            node.release(waiting[choice % len(waiting)])
        elif kind == "reboot" and choice % 4 == 0:
            node.reboot()
            node.restart()
        if kind == "publish" or always_publish:
            node.publish()
        node.check()
    return refused


def drain(node: Node) -> None:
    for uid in sorted(node.allocations):
        node.release(uid)
    node.publish()
    for gpu in node.inventory.gpus:
        for offer in gpu.offers:
            name = f"gpu-{gpu.pci_address.replace(':', '-').replace('.', '-')}-{offer.mode.profile.replace('_', '-')}"
            assert name in node.allocatable(), f"{name} cannot be had on a free node"
            node.allocate("last", name)
            node.prepare("last")
            node.check()
            node.release("last")
            node.publish()


@given(events)
@settings(max_examples=150, phases=NO_SHRINK)
def test_stale_slices_never_mix_modes_nor_book_twice(script: list[tuple[str, int]]) -> None:
    """Even where the scheduler decides on slices of yesterday, and the program is killed at any step."""
    node = build_node()
    run(node, script, always_publish=False)
    drain(node)


@given(events)
@settings(max_examples=150, phases=NO_SHRINK)
def test_with_current_slices_nothing_is_refused(script: list[tuple[str, int]]) -> None:
    """Where slices are current, whatever the scheduler allocates can be prepared, without reboots in between."""
    node = build_node()
    assert run(node, [e for e in script if e[0] not in ("reboot", "kill")], always_publish=True) == 0
    drain(node)


def test_eight_claims_share_one_gpu_that_is_repartitioned_for_the_first() -> None:
    """The first claim of a CPX partition brings the GPU into CPX; seven more join it; the ninth takes the next GPU."""
    node = build_node()
    for number in range(8):
        assert CPX_NPS1 in node.allocatable()
        node.allocate(f"claim-{number}", CPX_NPS1)
        node.prepare(f"claim-{number}")
        node.publish()
        node.check()
    assert CPX_NPS1 not in node.allocatable()
    assert "gpu-0000-06-00-0-cpx-nps1" in node.allocatable()
    assert node.inventory.gpus[0].mode == Mode("CPX", "NPS1")
    assert len({held.holding.slot for held in node.running()}) == 8


def test_a_memory_mode_is_taken_by_the_node_and_followed_by_the_other_gpus() -> None:
    """An NPS4 claim waits for nobody on a free node, blocks it until the reload, then the other GPUs offer NPS4."""
    node = build_node()
    node.allocate("first", CPX_NPS4)
    assert set(node.allocatable()) == {CPX_NPS4}
    node.prepare("first")
    assert node.reloads == 1
    node.publish()
    free = node.allocatable()
    assert CPX_NPS4 in free
    assert "gpu-0000-06-00-0-cpx-nps4" in free
    assert "gpu-0000-06-00-0-qpx-nps4" in free
    assert not [name for name in free if "nps1" in name]


def test_a_used_node_offers_no_other_memory_mode() -> None:
    """While any claim is on the node, a mode that needs a reload cannot be allocated."""
    node = build_node()
    node.allocate("user", "gpu-0000-06-00-0-spx-nps1")
    node.prepare("user")
    node.publish()
    assert not [name for name in node.allocatable() if "nps1" not in name]
    assert CPX_NPS1 in node.allocatable()


def test_what_slips_through_is_refused_with_a_reason() -> None:
    """Two claims that the scheduler allocated in two modes of one GPU: the second names the first."""
    node = build_node()
    node.allocate("first", CPX_NPS1)
    node.allocations["second"] = [type(node.allocations["first"][0])("gpu-0000-05-00-0-qpx-nps1", 99)]
    node.prepare("first")
    with pytest.raises(Busy, match="default/first holds a partition of the same GPU in mode cpx_nps1"):
        node.prepare("second")
    node.release("first")
    node.prepare("second")
    node.check()


@pytest.mark.parametrize("acts", range(6))
def test_a_killed_reload_is_finished_after_the_restart(acts: int) -> None:
    """Whatever step the program is killed after, the restart brings the claim to its end without a second reload."""
    node = build_node()
    node.allocate("claim", CPX_NPS4)
    node.kill_after = acts
    try:
        node.prepare("claim")
    except Killed:
        node.restart()
    node.prepare("claim")
    node.check()
    assert {gpu.mode for gpu in node.inventory.gpus} == {Mode("CPX", "NPS4")}
    assert node.reloads == 1


def test_a_reboot_brings_partitions_back() -> None:
    """After a reboot, which resets modes, all claims get the same partitions of the same GPUs again."""
    node = build_node()
    for number in range(3):
        node.allocate(f"claim-{number}", CPX_NPS4)
        node.prepare(f"claim-{number}")
        node.publish()
    before = {held.record.uid: held.holding for held in node.running()}
    node.reboot()
    node.restart()
    node.check()
    assert {held.record.uid: held.holding for held in node.running()} == before


def test_a_claim_can_have_several_partitions_of_one_gpu() -> None:
    """One claim with four allocations of a mode's device gets four different partitions."""
    node = build_node()
    for _ in range(4):
        node.allocate("claim", CPX_NPS1)
    node.prepare("claim")
    node.check()
    assert len(node.running()) == 4
