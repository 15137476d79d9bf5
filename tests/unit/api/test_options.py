"""Values of environment variables and flags."""

from collections.abc import Callable
from typing import Any

import pytest

from api.errors import InvalidObject
from api.options import parse_bool, parse_duration, parse_endpoint, parse_level, parse_positive, parse_seconds


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [(":8080", ("", 8080)), ("127.0.0.1:0", ("127.0.0.1", 0)), ("[::1]:9", ("::1", 9)), ("[::]:80", ("::", 80))],
)
def test_endpoints(text: str, endpoint: tuple[str, int]) -> None:
    assert parse_endpoint("HTTP_ENDPOINT", text) == endpoint


@pytest.mark.parametrize(("text", "seconds"), [("15s", 15.0), ("1m30s", 90.0), ("500ms", 0.5), ("1h", 3600.0)])
def test_durations_are_gos(text: str, seconds: float) -> None:
    assert parse_duration("LEASE_DURATION", text) == seconds


@pytest.mark.parametrize(
    ("parse", "wrong"),
    [
        (parse_endpoint, ["8080", "8080x", ":http", ":65536", ":-1", ":", ""]),
        (parse_duration, ["15", "s", "1m 30s", "-1s", "0s", ""]),
        (parse_seconds, ["often", "-1", "nan", "inf", "0", ""]),
        (parse_positive, ["0", "-1", "1.5", ""]),
        (parse_bool, ["True", "yes", ""]),
        (parse_level, ["loud", "5", ""]),
    ],
)
def test_what_cannot_be_is_refused_with_its_name_and_value(parse: Callable[[str, str], Any], wrong: list[str]) -> None:
    for text in wrong:
        with pytest.raises(InvalidObject) as refusal:
            parse("VARIABLE", text)
        assert f"VARIABLE={text}: right would be " in str(refusal.value)
