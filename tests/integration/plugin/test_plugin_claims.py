"""Claims of NVIDIA GPUs, from the kubelet's call to what the runtime and the hardware then have."""

import asyncio
from uuid import uuid4

import pytest
from bench.kubelet import PrepareFailed

from tests.support.plugin_world import SLICE, World, in_world, until


@in_world()
async def test_a_full_gpu_is_described_to_the_runtime_and_given_back(it: World) -> None:
    kubelet = await it.start()
    claim = await it.claim("whole", "gpu-1")
    (device,) = (await kubelet.prepare(claim))[claim.uid]
    assert (list(device.request_names), device.pool_name, device.device_name) == (["r0"], it.node.name, "gpu-1")
    assert list(device.cdi_device_ids) == [f"k8s.gpu.nvidia.com/claim={claim.uid}-gpu-1"]
    (spec,) = it.specs().values()
    nodes = [node["path"] for node in spec["devices"][0]["containerEdits"]["deviceNodes"]]
    assert nodes == ["/dev/nvidia1"]
    await kubelet.unprepare(claim)
    it.assert_clean()


@in_world()
async def test_a_mig_slice_is_made_at_its_placement_and_removed(it: World) -> None:
    kubelet = await it.start()
    claim = await it.claim("slice", SLICE)
    await kubelet.prepare(claim)
    assert it.instances() == [(0, 19, 0, True)]
    (spec,) = it.specs().values()
    nodes = [node["path"] for node in spec["devices"][0]["containerEdits"]["deviceNodes"]]
    assert nodes[0] == "/dev/nvidia0"
    assert len([node for node in nodes if node.startswith("/dev/nvidia-caps/nvidia-cap")]) == 2
    await kubelet.unprepare(claim)
    it.assert_clean()
    assert [gpu.mig.enabled for gpu in it.gpus() if gpu.mig] == [False, False]


@in_world()
async def test_concurrent_calls_for_one_claim_get_the_same_devices(it: World) -> None:
    kubelet = await it.start()
    claim = await it.claim("shared", SLICE)
    answers = await asyncio.gather(*(kubelet.prepare(claim) for _ in range(4)))
    ids = {tuple(answer[claim.uid][0].cdi_device_ids) for answer in answers}
    assert len(ids) == 1
    assert len(it.instances()) == 1


@in_world()
async def test_slices_of_one_gpu_are_prepared_at_once(it: World) -> None:
    kubelet = await it.start()
    claims = [await it.claim(f"c{start}", f"gpu-0-mig-1g10gb-19-{start}") for start in range(7)]
    await asyncio.gather(*(kubelet.prepare(claim) for claim in claims))
    assert {start for _, _, start, _ in it.instances()} == set(range(7))
    await asyncio.gather(*(kubelet.unprepare(claim) for claim in claims))
    it.assert_clean()


@in_world()
async def test_one_call_answers_for_every_claim_of_its_own(it: World) -> None:
    """A claim that does not exist fails alone; its neighbour in the same call is prepared."""
    kubelet = await it.start()
    good = await it.claim("good", "gpu-0")
    gone = type(good)(it.namespace, "gone", str(uuid4()))
    with pytest.raises(PrepareFailed, match=f"claim {it.namespace}/gone: it does not exist any more"):
        await kubelet.prepare(good, gone)
    assert it.records() == {good.uid}


@in_world()
async def test_an_overlap_is_refused_with_both_names(it: World) -> None:
    kubelet = await it.start()
    holder, other = await it.claim("holder", "gpu-0"), await it.claim("other", SLICE)
    await kubelet.prepare(holder)
    with pytest.raises(PrepareFailed, match=rf"(?s){it.namespace}/other.*{it.namespace}/holder"):
        await kubelet.prepare(other)
    assert it.records() == {holder.uid}
    event = (await until("an Event on the claim", lambda: it.events("Busy")))[0]
    assert event["regarding"]["name"] == "other"


@pytest.mark.parametrize("device", ["gpu-0", SLICE])
@in_world()
async def test_a_device_of_another_node_is_not_given_out_here(it: World, device: str) -> None:
    """A pod with spec.nodeName passes by the scheduler, and the kubelet does not ask where its claim is allocated."""
    kubelet = await it.start()
    claim = await it.claim("elsewhere", device, pool="another")
    with pytest.raises(PrepareFailed, match=rf"elsewhere: request r0: .* pool another, .* node {it.node.name};"):
        await kubelet.prepare(claim)
    it.assert_clean()
    event = (await until("an Event on the claim", lambda: it.events("WrongNode")))[0]
    assert event["regarding"]["name"] == "elsewhere"
    await kubelet.unprepare(claim)


@in_world()
async def test_mig_mode_that_cannot_be_left_holds_no_pod(it: World) -> None:
    """A monitor has the GPU open: the slice is given back all the same, and the mode is left when the GPU is wanted."""
    kubelet = await it.start()
    claim = await it.claim("slice", SLICE)
    await kubelet.prepare(claim)
    it.fail("nvmlDeviceSetMigMode", "in-use")
    await kubelet.unprepare(claim)
    it.assert_clean()
    assert it.gpus()[0].mig is not None and it.gpus()[0].mig.enabled
    it.inject("none")
    await kubelet.prepare(await it.claim("whole", "gpu-0"))
    assert it.gpus()[0].mig is not None and not it.gpus()[0].mig.enabled
