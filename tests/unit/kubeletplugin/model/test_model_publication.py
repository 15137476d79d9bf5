"""Publishing: the writes that turn what the API server stores into what a node offers.

The cases are those of the unit tests of k8s.io/dynamic-resource-allocation's ResourceSlice controller.
"""

import copy
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.resources import NodeView
from kubeletplugin.model.slices import CreateSlice, DeleteSlice, SliceAction, UpdateSlice, plan_publication

DRIVER = "gpu.nvidia.com"
NODE = NodeView("node-1", "node-uid", {})


class Server:
    """Stores slices as the API server does: generated names, UIDs, resource versions, times of taints."""

    def __init__(self, drops: tuple[str, ...] = ()) -> None:
        self.slices: dict[str, dict[str, Any]] = {}
        self.drops = drops
        self._numbers = itertools.count(1)

    def publish(self, *desired: dict[str, Any], node: NodeView = NODE) -> tuple[SliceAction, ...]:
        actions = plan_publication(tuple(self.slices.values()), desired, node)
        for action in actions:
            self.apply(action)
        return actions

    def apply(self, action: SliceAction) -> None:
        match action:
            case CreateSlice(body):
                number = next(self._numbers)
                name = f"{body['metadata']['generateName'][:58]}{number:05d}"
                metadata = {**body["metadata"], "name": name, "uid": f"uid-{number}"}
                self._store(name, {**body, "metadata": metadata})
            case UpdateSlice(body):
                old = self.slices[body["metadata"]["name"]]
                assert body["metadata"]["resourceVersion"] == old["metadata"]["resourceVersion"]
                assert all(body["spec"][key] == old["spec"][key] for key in ("driver", "nodeName"))
                self._store(body["metadata"]["name"], body)
            case DeleteSlice(name, uid, version):
                metadata = self.slices.pop(name)["metadata"]
                assert (metadata["uid"], metadata["resourceVersion"]) == (uid, version)

    def _store(self, name: str, body: dict[str, Any]) -> None:
        body = copy.deepcopy(body)
        body["metadata"]["resourceVersion"] = str(next(self._numbers))
        for device in body["spec"].get("devices", ()):
            for field in self.drops:
                device.pop(field, None)
            for taint in device.get("taints", ()):
                taint.setdefault("timeAdded", f"2026-01-01T00:00:{next(self._numbers) % 60:02d}Z")
        self.slices[name] = body

    def ordered(self) -> list[dict[str, Any]]:
        return [self.slices[name] for name in sorted(self.slices)]

    def generations(self) -> list[int]:
        return [raw["spec"]["pool"]["generation"] for raw in self.ordered()]


def spec(*devices: str | dict[str, Any], pool: str = "node-1") -> dict[str, Any]:
    listed = [{"name": d} if isinstance(d, str) else d for d in devices]
    return {"driver": DRIVER, "nodeName": "node-1", "pool": {"name": pool}, "devices": listed}


def kinds(actions: tuple[SliceAction, ...]) -> list[str]:
    return [type(action).__name__.removesuffix("Slice") for action in actions]


def tainted(name: str, *keys: str) -> dict[str, Any]:
    return {"name": name, "taints": [{"key": key, "value": "1", "effect": "NoSchedule"} for key in keys]}


def test_slices_are_created_in_order_with_owner_index_and_count() -> None:
    server = Server()
    assert kinds(server.publish(spec("a"), spec("b"))) == ["Create", "Create"]
    for index, raw in enumerate(server.ordered()):
        assert raw["metadata"]["generateName"] == f"0000{index}-gpu.nvidia.com-node-1-"
        assert raw["metadata"]["ownerReferences"] == [
            {"apiVersion": "v1", "kind": "Node", "name": "node-1", "uid": "node-uid", "controller": True}
        ]
        assert raw["spec"]["pool"] == {"name": "node-1", "generation": 1, "resourceSliceCount": 2}


def test_the_index_in_a_name_is_hexadecimal_so_names_sort_in_the_allocators_order() -> None:
    server = Server()
    server.publish(*(spec(f"d{i}") for i in range(17)))
    assert [raw["spec"]["devices"][0]["name"] for raw in server.ordered()] == [f"d{i}" for i in range(17)]
    assert server.ordered()[16]["metadata"]["generateName"].startswith("00010-")


def test_what_is_right_is_left_alone() -> None:
    server = Server()
    server.publish(spec("a"), spec("b"))
    before = copy.deepcopy(server.slices)
    assert server.publish(spec("a"), spec("b")) == ()
    assert server.slices == before


def test_one_changed_slice_is_updated_in_its_generation() -> None:
    server = Server()
    server.publish(spec("a"), spec("b"))
    assert kinds(server.publish(spec("a"), spec("c"))) == ["Update"]
    assert server.generations() == [1, 1]


def test_two_changed_slices_are_a_new_generation_of_all() -> None:
    server = Server()
    server.publish(spec("a"), spec("b"), spec("c"))
    assert kinds(server.publish(spec("x"), spec("y"), spec("c"))) == ["Update"] * 3
    assert server.generations() == [2, 2, 2]


def test_an_added_slice_is_a_new_generation_written_after_the_changed_ones() -> None:
    server = Server()
    server.publish(spec("a"))
    assert kinds(server.publish(spec("a"), spec("b"))) == ["Update", "Create"]
    assert server.generations() == [2, 2]
    assert {raw["spec"]["pool"]["resourceSliceCount"] for raw in server.ordered()} == {2}


def test_of_removed_slices_the_last_is_deleted_first() -> None:
    server = Server()
    server.publish(spec("a"), spec("b"), spec("c"))
    actions = server.publish(spec("a"), spec("b"))
    assert kinds(actions) == ["Delete", "Update", "Update"]
    assert server.generations() == [2, 2]
    actions = server.publish(spec("a"))
    assert kinds(actions) == ["Delete", "Update"]
    assert server.generations() == [2], "one slice changes at once, so no new generation is needed"


def test_all_devices_gone_leaves_one_empty_slice() -> None:
    server = Server()
    server.publish(spec("a"), spec("b"))
    server.publish(spec())
    assert [raw["spec"]["devices"] for raw in server.ordered()] == [[]]
    del server.ordered()[0]["spec"]["devices"]
    assert server.publish(spec()) == (), "the server leaves an empty list out"


def test_the_order_of_devices_is_part_of_what_is_published() -> None:
    server = Server()
    server.publish(spec("a", "b"))
    assert kinds(server.publish(spec("b", "a"))) == ["Update"]
    assert [d["name"] for d in server.ordered()[0]["spec"]["devices"]] == ["b", "a"]


def test_a_slice_that_somebody_deleted_comes_back() -> None:
    server = Server()
    server.publish(spec("a"), spec("b"))
    del server.slices[sorted(server.slices)[0]]
    assert kinds(server.publish(spec("a"), spec("b"))) == ["Update", "Create"]
    assert server.generations() == [2, 2]


def test_a_slice_that_somebody_changed_is_put_right() -> None:
    server = Server()
    server.publish(spec("a"))
    server.ordered()[0]["spec"]["devices"].append({"name": "intruder"})
    assert kinds(server.publish(spec("a"))) == ["Update"]
    assert server.publish(spec("a")) == ()


def test_two_slices_for_one_index_end_as_one() -> None:
    server = Server()
    server.publish(spec("a"))
    (create,) = plan_publication((), (spec("a"),), NODE)
    server.apply(create)
    assert kinds(server.publish(spec("a"))) == ["Delete"]
    assert len(server.slices) == 1


@pytest.mark.parametrize(
    "name", ["node-1-gpu.nvidia.com-abcde", "00000-gpu.amd.com-node-1-abcde", "0000-x", "000ff-gpu.nvidia.com-node-1-a"]
)
def test_a_slice_with_a_name_of_another_scheme_is_replaced(name: str) -> None:
    server = Server()
    server.publish(spec("a"))
    (old,) = server.slices.values()
    server.slices = {name: {**old, "metadata": {**old["metadata"], "name": name}}}
    assert kinds(server.publish(spec("a"))) == ["Delete", "Create"]
    assert server.generations() == [2]


def test_slices_of_a_node_object_that_was_replaced_are_made_anew() -> None:
    server = Server()
    server.publish(spec("a"))
    assert kinds(server.publish(spec("a"), node=NodeView("node-1", "new-uid", {}))) == ["Delete", "Create"]
    assert server.ordered()[0]["metadata"]["ownerReferences"][0]["uid"] == "new-uid"


def test_slices_of_another_pool_of_this_driver_and_node_are_removed() -> None:
    server = Server()
    server.publish(spec("a", pool="old-pool"))
    assert kinds(server.publish(spec("a"))) == ["Delete", "Create"]


def test_a_pool_left_between_two_generations_is_finished() -> None:
    server = Server()
    server.publish(spec("a"), spec("b"), spec("c"))
    actions = plan_publication(tuple(server.slices.values()), (spec("x"), spec("y"), spec("c")), NODE)
    server.apply(actions[0])
    server.publish(spec("x"), spec("y"), spec("c"))
    assert len(set(server.generations())) == 1
    assert server.publish(spec("x"), spec("y"), spec("c")) == ()


def test_a_long_node_name_is_cut_as_the_server_cuts_it() -> None:
    node = NodeView("n" * 80, "node-uid", {})
    server = Server()
    server.publish(spec("a"), node=node)
    assert server.publish(spec("a"), node=node) == ()


def test_quantities_are_compared_by_value() -> None:
    server = Server()
    capacity = {"name": "a", "capacity": {"memory": {"value": "1Gi"}}}
    server.publish(spec(capacity))
    server.ordered()[0]["spec"]["devices"][0]["capacity"]["memory"]["value"] = "1024Mi"
    assert server.publish(spec(capacity)) == ()
    server.ordered()[0]["spec"]["devices"][0]["capacity"]["memory"]["value"] = "1025Mi"
    assert kinds(server.publish(spec(capacity))) == ["Update"]


def test_attributes_are_compared_with_their_types() -> None:
    server = Server()
    server.publish(spec({"name": "a", "attributes": {"index": {"int": 1}}}))
    assert kinds(server.publish(spec({"name": "a", "attributes": {"index": {"string": "1"}}}))) == ["Update"]
    assert kinds(server.publish(spec({"name": "a", "attributes": {}}))) == ["Update"]


def test_a_taint_that_stays_keeps_the_time_at_which_it_was_added() -> None:
    server = Server()
    server.publish(spec(tainted("a", "one"), "b"))
    first = server.ordered()[0]["spec"]["devices"][0]["taints"][0]["timeAdded"]
    assert server.publish(spec(tainted("a", "one"), "b")) == ()
    assert kinds(server.publish(spec(tainted("a", "one", "two"), "b"))) == ["Update"]
    one, two = server.ordered()[0]["spec"]["devices"][0]["taints"]
    assert one["timeAdded"] == first
    assert two["timeAdded"] != first
    server.publish(spec("a", "b"))
    assert "taints" not in server.ordered()[0]["spec"]["devices"][0]


def test_what_the_server_adds_to_metadata_survives_an_update() -> None:
    server = Server()
    server.publish(spec("a"))
    server.ordered()[0]["metadata"] |= {"labels": {"keep": "me"}, "managedFields": [{"manager": "x"}]}
    server.publish(spec("b"))
    assert server.ordered()[0]["metadata"]["labels"] == {"keep": "me"}
    assert "managedFields" not in server.ordered()[0]["metadata"]


@pytest.mark.parametrize("field", ["taints", "consumesCounters", "bindingConditions", "allowMultipleAllocations"])
def test_a_dropped_field_shows_as_a_change_until_it_is_given_up(field: str) -> None:
    server = Server(drops=(field,))
    server.publish(spec({"name": "a", field: [{"key": "k", "effect": "NoSchedule"}]}))
    assert kinds(server.publish(spec({"name": "a", field: [{"key": "k", "effect": "NoSchedule"}]}))) == ["Update"]
    assert server.publish(spec({"name": "a"})) == ()


contents = st.lists(st.lists(st.sampled_from("abcdef"), unique=True, max_size=3), min_size=1, max_size=5)


@given(st.lists(contents, min_size=1, max_size=5), st.data())
def test_any_history_of_interrupted_publications_ends_in_one_complete_pool(
    history: list[list[list[str]]], data: st.DataObject
) -> None:
    server = Server()
    for desired in history:
        actions = plan_publication(tuple(server.slices.values()), [spec(*d) for d in desired], NODE)
        for action in actions[: data.draw(st.integers(0, len(actions)))]:
            server.apply(action)
    final = [spec(*d) for d in history[-1]]
    server.publish(*final)
    pools = [raw["spec"]["pool"] for raw in server.ordered()]
    assert len({pool["generation"] for pool in pools}) == 1
    assert {pool["resourceSliceCount"] for pool in pools} == {len(final)}
    assert [raw["spec"]["devices"] for raw in server.ordered()] == [s["devices"] for s in final]
    assert server.publish(*final) == ()
