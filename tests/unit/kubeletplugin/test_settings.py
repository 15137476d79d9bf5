"""Settings from environment and flags."""

import pytest

from api.errors import InvalidObject
from kubeletplugin.settings import parse_settings, parse_xids


def test_flags_win_over_the_environment_and_both_over_defaults() -> None:
    environment = {"NODE_NAME": "n1", "CDI_ROOT": "/etc/cdi", "DRIVER_ROOT": "/run/nvidia/driver"}
    settings = parse_settings(["--cdi-root", "/cdi"], environment)
    assert (settings.node_name, settings.cdi_root, settings.driver_root) == ("n1", "/cdi", "/run/nvidia/driver")
    assert settings.http_endpoint == ("", 8080)
    assert str(settings.seen_driver_root) == "/run/nvidia/driver"


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "NODE_NAME is not set"),
        ({"NODE_NAME": "n1", "PARTITA_CRASH_AFTER": "lunch"}, "PARTITA_CRASH_AFTER=lunch: right would be intent, "),
        ({"NODE_NAME": "n1", "RESCAN_INTERVAL_S": "often"}, "RESCAN_INTERVAL_S=often: right would be seconds"),
        ({"NODE_NAME": "n1", "LOG_LEVEL": "loud"}, "LOG_LEVEL=loud: right would be DEBUG, INFO, WARNING or ERROR"),
        ({"NODE_NAME": "n1", "BINDING_CONDITIONS": "yes"}, "BINDING_CONDITIONS=yes: right would be true or false"),
    ],
)
def test_a_wrong_setting_is_named(environment: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidObject, match=message):
        parse_settings([], environment)


def test_an_empty_endpoint_is_none() -> None:
    assert parse_settings(["--http-endpoint", ""], {"NODE_NAME": "n1"}).http_endpoint is None


def test_xids() -> None:
    assert parse_xids(" 13, 31,") == {13, 31}
    with pytest.raises(InvalidObject, match="'x' is not an XID"):
        parse_xids("13,x")
