"""Who we are, as our token says."""

import base64
import json
from typing import Any

import pytest

from api.identity import ServiceAccount, parse_service_account


def token(claims: Any) -> str:
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"Bearer header.{body}.signature"


def test_the_token_of_a_service_account_names_it() -> None:
    claims = {"kubernetes.io": {"namespace": "ns", "serviceaccount": {"name": "sa", "uid": "u"}, "pod": {"name": "p"}}}
    assert parse_service_account(token(claims)) == ServiceAccount("ns", "sa", "u")


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer opaque", "Basic a.b.c", token({}), token([]), token({"kubernetes.io": {"namespace": "ns"}})],
)
def test_anything_else_names_nobody(authorization: str | None) -> None:
    assert parse_service_account(authorization) is None
