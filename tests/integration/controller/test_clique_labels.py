"""The node label by which pods ask for one NVLink clique."""

import signal
from collections.abc import Iterator
from uuid import uuid4

import pytest

from api.names import GPU_CLIQUE_NODE_LABEL
from tests.support.cluster import Cluster, Object, path, wait_until
from tests.support.computedomain import FABRIC, Controller, make_node, publish


@pytest.fixture(scope="module")
def controller(prepared: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Controller]:
    log = tmp_path_factory.mktemp("labels") / "controller.log"
    controller = Controller(prepared, log, options={"GPU_CLIQUE_LABEL": "true"})
    with controller.leading():
        yield controller


@pytest.fixture
def node(prepared: Cluster, controller: Controller) -> Iterator[str]:
    """Its name; in clique 0."""
    name = f"labelled-{uuid4().hex[:6]}"
    make_node(prepared, name, f"{FABRIC}.0")
    yield name
    prepared.delete(path("v1", "nodes", name=name))


def read(cluster: Cluster, node: str) -> Object:
    return cluster.get(path("v1", "nodes", name=node))["metadata"]


def wait_label(cluster: Cluster, node: str, value: str | None) -> None:
    wait_until(
        f"{node} has {GPU_CLIQUE_NODE_LABEL} {value}",
        lambda: read(cluster, node)["labels"].get(GPU_CLIQUE_NODE_LABEL) == value,
    )


def test_a_node_is_labelled_with_its_clique_and_again_when_it_has_moved_to_another_rack(
    prepared: Cluster, node: str
) -> None:
    wait_label(prepared, node, f"{FABRIC}.0")
    publish(prepared, node, f"{FABRIC}.1")
    wait_label(prepared, node, f"{FABRIC}.1")
    publish(prepared, node, None)
    wait_label(prepared, node, None)


def test_a_controller_that_was_killed_labels_what_has_moved_meanwhile(
    prepared: Cluster, controller: Controller, node: str
) -> None:
    wait_label(prepared, node, f"{FABRIC}.0")
    controller.stop(signal.SIGKILL)
    publish(prepared, node, f"{FABRIC}.1")
    controller.start()
    wait_label(prepared, node, f"{FABRIC}.1")


def test_while_the_nodes_plugin_is_away_its_label_stays(prepared: Cluster, node: str) -> None:
    wait_label(prepared, node, f"{FABRIC}.0")
    prepared.delete(path("resource.k8s.io/v1", "resourceslices", name=f"{node}-compute-domain"))
    other = f"{node}-witness"
    make_node(prepared, other, f"{FABRIC}.1")
    wait_label(prepared, other, f"{FABRIC}.1")  # what came before it has been looked at, too
    prepared.delete(path("v1", "nodes", name=other))
    assert read(prepared, node)["labels"][GPU_CLIQUE_NODE_LABEL] == f"{FABRIC}.0"


def test_what_somebody_else_wrote_into_the_label_stays(prepared: Cluster, controller: Controller) -> None:
    name = f"foreign-{uuid4().hex[:6]}"
    node = {"metadata": {"name": name, "labels": {GPU_CLIQUE_NODE_LABEL: f"{FABRIC}.7"}}}
    prepared.create(path("v1", "nodes"), node)
    publish(prepared, name, f"{FABRIC}.0")
    witness = f"{name}-witness"
    make_node(prepared, witness, f"{FABRIC}.1")
    wait_label(prepared, witness, f"{FABRIC}.1")
    assert read(prepared, name)["labels"][GPU_CLIQUE_NODE_LABEL] == f"{FABRIC}.7"
    publish(prepared, name, None)
    publish(prepared, witness, None)
    wait_label(prepared, witness, None)
    assert read(prepared, name)["labels"][GPU_CLIQUE_NODE_LABEL] == f"{FABRIC}.7"
    for each in (name, witness):
        prepared.delete(path("v1", "nodes", name=each))
