"""Flags and environment of the controller."""

import pytest

from api.errors import InvalidObject
from controller.settings import parse_duration, parse_settings


def test_flags_beat_the_environment() -> None:
    settings = parse_settings(["--lease-name", "flag"], {"LEASE_NAME": "environment", "IMEX_TLS": "false"})
    assert settings.lease_name == "flag" and settings.imex_tls is False


@pytest.mark.parametrize(("text", "seconds"), [("15s", 15.0), ("1m30s", 90.0), ("500ms", 0.5), ("1h", 3600.0)])
def test_durations_are_gos(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("verbosity", "level"), [("0", "WARNING"), ("1", "INFO"), ("3", "INFO"), ("5", "INFO"), ("6", "DEBUG")]
)
def test_a_verbosity_means_what_the_chart_makes_of_it_for_the_node_plugin(verbosity: str, level: str) -> None:
    assert parse_settings([], {"LOG_VERBOSITY": verbosity}).log_level == level


@pytest.mark.parametrize(
    "environment",
    [
        {"LEASE_DURATION": "15"},
        {"LEASE_DURATION": "5s"},
        {"IMEX_TLS": "yes"},
        {"IMEX_NODE_LIST": "dns"},
        {"MAX_NODES_PER_IMEX_DOMAIN": "0"},
        {"LOG_VERBOSITY": "loud"},
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_name(environment: dict[str, str]) -> None:
    with pytest.raises(InvalidObject, match=next(iter(environment)).split("_")[0] + "|duration"):
        parse_settings([], environment)
