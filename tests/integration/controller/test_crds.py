"""CustomResourceDefinitions that Helm found in the cluster and left as they were."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.support.cluster import Cluster, Object, wait_until
from tests.support.computedomain import CHART, Controller, install

NAMESPACE = "crd-system"
CLIQUES = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/computedomaincliques.resource.nvidia.com"


def read_definition() -> Object:
    definition: Object = yaml.safe_load((CHART / "crds/computedomaincliques.resource.nvidia.com.yaml").read_text())
    return definition


@pytest.fixture
def older(control_plane: Cluster) -> Iterator[Cluster]:
    """A cluster whose definition of ComputeDomainCliques is another driver's: it lacks fields, and our annotation."""
    install(control_plane, NAMESPACE)
    definition = read_definition()
    del definition["metadata"]["annotations"]
    del definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["domainNamespace"]
    stored = control_plane.get(CLIQUES)
    definition["metadata"]["resourceVersion"] = stored["metadata"]["resourceVersion"]
    control_plane.request("PUT", CLIQUES, definition)
    yield control_plane
    control_plane.apply(read_definition())


def start(cluster: Cluster, log: Path) -> Controller:
    controller = Controller(cluster, log, NAMESPACE).start()
    try:
        controller.wait_leading()
    except BaseException:
        controller.stop(signal.SIGKILL)
        raise
    return controller


def test_a_definition_of_another_version_is_brought_up_to_date_and_then_left_alone(
    older: Cluster, tmp_path: Path
) -> None:
    assert start(older, tmp_path / "first.log").stop() == 0
    wanted = read_definition()
    stored = older.get(CLIQUES)
    assert stored["metadata"]["annotations"] == wanted["metadata"]["annotations"]
    fields = stored["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    assert set(fields) == set(wanted["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"])

    generation = stored["metadata"]["generation"]
    again = start(older, tmp_path / "second.log")
    assert again.stop() == 0
    renewals = [write for write in again.writes() if "customresourcedefinitions" in write.uri]
    assert len(renewals) == 1, "the first controller's"
    assert older.get(CLIQUES)["metadata"]["generation"] == generation


def test_what_was_brought_up_to_date_is_helms_to_change_at_a_later_installation(older: Cluster, tmp_path: Path) -> None:
    """Helm 4 applies `crds/` as a manager of fields, and gives up where another one has set them."""
    assert start(older, tmp_path / "controller.log").stop() == 0
    later = read_definition()
    later["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["description"] = "of a later version"
    older.request("PATCH", f"{CLIQUES}?fieldManager=helm", later, "application/apply-patch+yaml")


def test_a_definition_that_is_missing_is_reported_and_not_made(control_plane: Cluster, tmp_path: Path) -> None:
    """Whoever removed it may have meant it; the controller waits for it."""
    install(control_plane, NAMESPACE)
    control_plane.delete(CLIQUES)
    controller = Controller(control_plane, tmp_path / "controller.log", NAMESPACE).start()
    try:
        wait_until("it is reported", lambda: '"crd_missing"' in controller.log.read_text())
        assert control_plane.find(CLIQUES) is None
    finally:
        controller.stop(signal.SIGKILL)
        control_plane.apply(read_definition())
