"""Views show what the programs need of Kubernetes objects, whatever else these hold."""

from api.resources import allocated_devices, view_claim, view_node, view_slice


def test_a_claim_without_status_is_neither_allocated_nor_reserved() -> None:
    view = view_claim({"metadata": {"uid": "u", "namespace": "ns", "name": "n"}, "spec": {}})
    assert (view.allocated, view.reserved_for, view.deleting) == (False, (), False)


def test_only_results_of_the_driver_and_pool_asked_for_are_seen() -> None:
    results = [
        {"driver": "gpu.nvidia.com", "pool": "node-1", "device": "gpu-0", "request": "r"},
        {"driver": "gpu.nvidia.com", "pool": "node-2", "device": "gpu-1", "request": "r"},
        {"driver": "nic.example.com", "pool": "node-1", "device": "nic-0", "request": "r"},
    ]
    claim = {"metadata": {"uid": "u"}, "status": {"allocation": {"devices": {"results": results}}}}
    assert [r["device"] for r in allocated_devices(claim, "gpu.nvidia.com", "node-1")] == ["gpu-0"]
    assert [r["device"] for r in allocated_devices(claim, "gpu.nvidia.com")] == ["gpu-0", "gpu-1"]
    assert allocated_devices(claim, "gpu.nvidia.com", "node-3") == ()
    assert allocated_devices({"status": {"allocation": None}}, "gpu.nvidia.com") == ()


def test_a_slice_knows_its_owner_node_and_generation() -> None:
    raw = {
        "metadata": {
            "name": "s",
            "uid": "u",
            "resourceVersion": "7",
            "ownerReferences": [{"kind": "Pod", "uid": "p"}, {"kind": "Node", "uid": "n"}],
        },
        "spec": {"pool": {"name": "node-1", "generation": 3}},
    }
    view = view_slice(raw)
    assert (view.owner_uid, view.generation, view.resource_version) == ("n", 3, "7")


def test_a_node_without_labels_has_none() -> None:
    assert view_node({"metadata": {"name": "n", "uid": "u"}}).labels == {}
