"""Settings from environment and flags."""

import pytest

from api.errors import InvalidObject
from kubeletplugin.settings import parse_endpoint, parse_settings, parse_xids


def test_flags_win_over_the_environment_and_both_over_defaults() -> None:
    environment = {"NODE_NAME": "n1", "CDI_ROOT": "/etc/cdi", "DRIVER_ROOT": "/run/nvidia/driver"}
    settings = parse_settings(["--cdi-root", "/cdi"], environment)
    assert (settings.node_name, settings.cdi_root, settings.driver_root) == ("n1", "/cdi", "/run/nvidia/driver")
    assert settings.http_endpoint == ":8080"
    assert str(settings.seen_driver_root) == "/run/nvidia/driver"


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "NODE_NAME is not set"),
        ({"NODE_NAME": "n1", "PARTITA_CRASH_AFTER": "lunch"}, "PARTITA_CRASH_AFTER=lunch: expected one of intent"),
        ({"NODE_NAME": "n1", "RESCAN_INTERVAL_S": "often"}, "RESCAN_INTERVAL_S: expected seconds"),
    ],
)
def test_a_wrong_setting_is_named(environment: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidObject, match=message):
        parse_settings([], environment)


def test_endpoints() -> None:
    assert parse_endpoint(":8080") == ("", 8080)
    assert parse_endpoint("[::1]:9") == ("::1", 9)
    with pytest.raises(InvalidObject, match="HTTP_ENDPOINT=8080x"):
        parse_endpoint("8080x")


def test_xids() -> None:
    assert parse_xids(" 13, 31,") == {13, 31}
    with pytest.raises(InvalidObject, match="'x' is not an XID"):
        parse_xids("13,x")
