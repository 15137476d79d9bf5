"""What variables and flags say, as values; a refusal names variable, value and what would be right. Pure."""

import re
from typing import Final

from api.errors import InvalidObject

Endpoint = tuple[str, int]
"""Address, "" for every one of both families; and port, 0 for any that is free."""

LOG_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR")
_DURATION_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def refuse(name: str, text: str, right: str) -> InvalidObject:
    return InvalidObject(f"{name}={text}: right would be {right}")


def parse_choice(name: str, text: str, right: tuple[str, ...]) -> str:
    if text not in right:
        raise refuse(name, text, " or ".join((", ".join(right[:-1]), right[-1])))
    return text


def parse_bool(name: str, text: str) -> bool:
    return parse_choice(name, text, ("true", "false")) == "true"


def parse_level(name: str, text: str) -> str:
    return text.upper() if text.upper() in LOG_LEVELS else parse_choice(name, text, LOG_LEVELS)


def parse_endpoint(name: str, text: str) -> Endpoint:
    """`:8080`, `10.0.0.1:8080`, `[::1]:8080`."""
    host, colon, port = text.rpartition(":")
    if not colon or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise refuse(name, text, "[address]:port, like :8080")
    return host.strip("[]"), int(port)


def parse_positive(name: str, text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]*", text):
        raise refuse(name, text, "a whole number above 0")
    return int(text)


def parse_seconds(name: str, text: str) -> float:
    """`3`, `0.5`."""
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) or not float(text):
        raise refuse(name, text, "seconds, a number above 0")
    return float(text)


def parse_duration(name: str, text: str) -> float:
    """`15s`, `1m30s`, `500ms` (Go's notation) in seconds."""
    parts = re.findall(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)", text)
    duration_s = sum(float(number) * _DURATION_UNITS[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != text or not duration_s:
        raise refuse(name, text, "a duration above 0, like 15s or 1m30s")
    return duration_s
