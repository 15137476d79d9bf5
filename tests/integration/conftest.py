"""Integration tests talk to a real etcd, API server, scheduler and controller manager; there are no kubelets."""

from collections.abc import Iterator
from uuid import uuid4

import pytest

from tests.support.cluster import Cluster, path
from tests.support.fixtures import session_cluster


@pytest.fixture(scope="session")
def control_plane_name() -> str:
    """Of two test sessions with the same the second waits; a folder that runs beside the others has its own."""
    return "it"


@pytest.fixture(scope="session")
def control_plane(control_plane_name: str) -> Iterator[Cluster]:
    """Without nodes; tests that need some make Node objects."""
    yield from session_cluster(control_plane_name, "--nodes", "0", "--audit", "--provider", "local")


@pytest.fixture
def namespace(control_plane: Cluster) -> Iterator[str]:
    """A fresh namespace, deleted afterwards without waiting for it."""
    name = f"test-{uuid4().hex[:8]}"
    control_plane.create(path("v1", "namespaces"), {"metadata": {"name": name}})
    yield name
    control_plane.delete(path("v1", "namespaces", name=name))
