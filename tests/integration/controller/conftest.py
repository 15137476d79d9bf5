"""A control plane beside that of the plugin's tests, which may run at the same time."""

from collections.abc import Iterator

import pytest

from tests.support.cluster import Cluster
from tests.support.fixtures import session_cluster


@pytest.fixture(scope="session")
def control_plane() -> Iterator[Cluster]:
    yield from session_cluster("ctl", "--nodes", "0", "--audit", "--provider", "local")
