"""Claims that are gone from the API server while the node still holds their devices: when they are given back."""

import pytest
from bench.kubelet import PrepareFailed

from tests.support.plugin_world import SLICE, World, in_world, until

GHOST = 4_200_001  # above every pid_max: a process that this machine cannot have


@in_world()
async def test_a_claim_that_is_gone_holds_its_gpu_until_its_container_has_ended(it: World) -> None:
    """A pod that is deleted by force loses its claim at once, and its container runs out its grace period."""
    kubelet = await it.start()
    old, new = await it.claim("forced", "gpu-0"), await it.claim("next", "gpu-0")
    await kubelet.prepare(old)
    await it.lose(old)
    with pytest.raises(PrepareFailed, match=rf"(?s){it.namespace}/next.*{it.namespace}/forced"):
        await kubelet.prepare(new)
    assert it.records() == {old.uid}
    await kubelet.unprepare(old)
    await kubelet.prepare(new)
    assert it.records() == {new.uid}


@in_world()
async def test_a_claim_that_vanished_unnoticed_gives_way_in_the_end(it: World) -> None:
    """Nobody called unprepare, but the claim has been gone from the API server for long: its device is free."""
    kubelet = await it.start(STALE_CLAIM_GRACE_S="1")
    old, new = await it.claim("old", SLICE), await it.claim("new", "gpu-0")
    await kubelet.prepare(old)
    await it.lose(old)
    await kubelet.prepare(new)
    assert it.records() == {new.uid}
    assert it.instances() == []


@in_world()
async def test_a_slice_that_a_process_still_uses_is_kept_although_its_claim_vanished_long_ago(it: World) -> None:
    """The pod's grace period is longer than ours, and its kubelet has forgotten the claim."""
    kubelet = await it.start(STALE_CLAIM_GRACE_S="1")
    old, new = await it.claim("old", SLICE), await it.claim("new", "gpu-0")
    await kubelet.prepare(old)
    (instance,) = it.instances_of(0)
    place = ("--gi", str(instance.gpu_instance_id), "--ci", str(instance.compute_instance_id))
    _occupy(it, 0, *place)
    await it.lose(old)
    with pytest.raises(PrepareFailed, match=rf"(?s){it.namespace}/new.*{it.namespace}/old"):
        await kubelet.prepare(new)
    assert it.records() == {old.uid}
    assert it.instances_of(0) == (instance,)
    await until("the Event", lambda: _told(it, "old", SLICE))
    _occupy(it, 0, *place, "--off")
    await kubelet.prepare(new)
    assert it.records() == {new.uid}
    assert it.instances() == []


@in_world()
async def test_a_gpu_that_is_lost_with_a_process_on_it_is_given_back(it: World) -> None:
    kubelet = await it.start(STALE_CLAIM_GRACE_S="1")
    claim = await it.claim("whole", "gpu-1")
    await kubelet.prepare(claim)
    await it.lose(claim)
    _occupy(it, 1, "--type", "G")
    it.node.end()
    await it.start(STALE_CLAIM_GRACE_S="1")  # looks for stale claims at once, not after ten minutes
    await until("the Event", lambda: _told(it, "whole", "gpu-1"))
    assert it.records() == {claim.uid}
    it.inject("lost", "--gpu", "1")
    await until("its end", lambda: _has_no_records(it))


@in_world()
async def test_what_the_kubelet_gives_back_is_not_kept_for_a_process(it: World) -> None:
    kubelet = await it.start()
    claim = await it.claim("whole", "gpu-1")
    await kubelet.prepare(claim)
    _occupy(it, 1)
    await kubelet.unprepare(claim)
    assert it.records() == set()


def _occupy(it: World, minor: int, *options: str) -> None:
    it.inject("in-use", "--gpu", str(minor), "--pid", str(GHOST), *options)


async def _told(it: World, claim: str, device: str) -> bool:
    """An Event on the node names claim, device and process."""
    events = [event for event in await it.events("StaleClaimInUse") if event["regarding"]["name"] == it.node.name]
    words = (f"claim {it.namespace}/{claim} is gone", f"{device} (", str(GHOST))
    return any(all(word in event["note"] for word in words) for event in events)


async def _has_no_records(it: World) -> bool:
    return it.records() == set()
