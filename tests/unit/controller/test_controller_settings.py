"""Flags and environment of the controller."""

import pytest

from api.errors import InvalidObject
from controller.__main__ import main
from controller.settings import parse_settings


def test_flags_beat_the_environment() -> None:
    settings = parse_settings(["--lease-name", "flag"], {"LEASE_NAME": "environment", "IMEX_TLS": "false"})
    assert settings.lease.name == "flag" and settings.domains.tls is False


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
        {"HTTP_ENDPOINT": ":http"},
        {"IMEX_TLS": "yes"},
        {"IMEX_NODE_LIST": "dns"},
        {"MAX_NODES_PER_IMEX_DOMAIN": "0"},
        {"LOG_VERBOSITY": "loud"},
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_name(environment: dict[str, str]) -> None:
    with pytest.raises(InvalidObject, match=next(iter(environment))):
        parse_settings([], environment)


def test_the_program_says_which_setting_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["partita-controller", "--http-endpoint", ":http"])
    with pytest.raises(SystemExit, match="HTTP_ENDPOINT=:http: right would be"):
        main()
