"""These tests mostly wait, and run beside all others."""

import pytest


@pytest.fixture(scope="session")
def control_plane_name() -> str:
    return "it-plugin"
