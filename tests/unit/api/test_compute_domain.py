"""The ComputeDomain API: what the generated CRDs promise, and how a membership object is read."""

import re
from typing import Any

import pytest
from pydantic import ValidationError

from api.clique import clique_object_name, parse_membership
from api.compute_domain import ComputeDomainSpec, build_crds
from api.errors import InvalidObject


def _schema(kind: str) -> dict[str, Any]:
    (crd,) = [crd for crd in build_crds() if crd["spec"]["names"]["kind"] == kind]
    schema: dict[str, Any] = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    return schema


def _walk(node: Any) -> list[dict[str, Any]]:
    if isinstance(node, list):
        return [found for item in node for found in _walk(item)]
    if not isinstance(node, dict):
        return []
    return [node, *[found for item in node.values() for found in _walk(item)]]


def test_the_spec_is_immutable_with_the_message_that_people_know() -> None:
    (rule,) = _schema("ComputeDomain")["spec"]["x-kubernetes-validations"]
    assert rule == {"rule": "self == oldSelf", "message": "A computeDomain.spec is immutable"}


@pytest.mark.parametrize(("name", "right"), [("a", True), ("a-1.b", True), ("Foo_Bar", False), ("-a", False)])
def test_a_templates_name_that_the_api_server_would_refuse_is_refused_in_the_domain(name: str, right: bool) -> None:
    channel = _schema("ComputeDomain")["spec"]["properties"]["channel"]
    pattern = channel["properties"]["resourceClaimTemplate"]["properties"]["name"]["pattern"]
    assert bool(re.search(pattern, name)) is right


def test_the_fields_of_the_reference_driver_are_all_there() -> None:
    spec, status = _schema("ComputeDomain")["spec"], _schema("ComputeDomain")["status"]
    assert spec["properties"]["numNodes"] | {"description": ""} == {
        "default": 0,
        "minimum": 0,
        "type": "integer",
        "description": "",
    }
    assert spec["properties"]["channel"]["properties"]["allocationMode"]["enum"] == ["All", "Single"]
    assert status["properties"]["status"]["default"] == "NotReady"
    node = status["properties"]["nodes"]
    assert node["x-kubernetes-list-map-keys"] == ["name"]
    assert set(node["items"]["required"]) == {"name", "ipAddress", "cliqueID"}
    daemon = _schema("ComputeDomainClique")["daemons"]["items"]
    assert set(daemon["required"]) == {"nodeName", "ipAddress", "cliqueID"}
    assert {"index", "status"} <= set(daemon["properties"])


def test_the_schemas_are_structural() -> None:
    """The API server refuses $ref, title and anyOf-with-null in a structural schema."""
    for crd in build_crds():
        for node in _walk(crd["spec"]["versions"][0]["schema"]):
            assert not {"$ref", "$defs", "title", "anyOf"} & set(node)


def test_a_domain_without_numnodes_is_elastic() -> None:
    spec = ComputeDomainSpec.model_validate({"channel": {"resourceClaimTemplate": {"name": "x"}}})
    assert (spec.num_nodes, spec.channel.allocation_mode, spec.channel.release_policy) == (0, "Single", "Connected")


def test_a_negative_number_of_nodes_is_refused() -> None:
    with pytest.raises(ValidationError):
        ComputeDomainSpec.model_validate({"numNodes": -1, "channel": {"resourceClaimTemplate": {"name": "x"}}})


def test_a_membership_is_read_by_node_and_ascends_by_index() -> None:
    raw = {
        "metadata": {"name": clique_object_name("uid-1", "fabric.7")},
        "domainName": "train",
        "domainNamespace": "team",
        "daemons": [
            {"nodeName": "b", "ipAddress": "10.0.0.2", "cliqueID": "fabric.7", "index": 1},
            {"nodeName": "a", "ipAddress": "10.0.0.1", "cliqueID": "fabric.7", "index": 0, "status": "Ready"},
        ],
    }
    membership = parse_membership(raw)
    assert (membership.domain_uid, membership.clique_id, membership.max_nodes) == ("uid-1", "fabric.7", 18)
    assert [member.node for member in membership.members] == ["a", "b"]
    member = membership.member("a")
    assert member is not None and member.ready and not member.released
    assert membership.member("c") is None


def test_a_membership_with_two_equal_indexes_is_refused_by_name() -> None:
    entry = {"ipAddress": "", "cliqueID": "f.1", "index": 3}
    raw = {"metadata": {"name": "u.f.1"}, "daemons": [{**entry, "nodeName": "a"}, {**entry, "nodeName": "b"}]}
    with pytest.raises(InvalidObject, match=r"u\.f\.1"):
        parse_membership(raw)
