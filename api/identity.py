"""Who we are to the API server, as our own token says. Pure."""

import base64
import json
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServiceAccount:
    """The account that a token was made for."""

    namespace: str
    name: str
    uid: str


def parse_service_account(authorization: str | None) -> ServiceAccount | None:
    """From an Authorization header with a token of Kubernetes' own (private claims `kubernetes.io`); else None."""
    parts = (authorization or "").removeprefix("Bearer ").split(".")
    if len(parts) != 3:
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=="))["kubernetes.io"]
        account = claims["serviceaccount"]
        return ServiceAccount(claims["namespace"], account["name"], account["uid"])
    except (ValueError, KeyError, TypeError):
        return None
