"""What the API server refuses with, as errors. Callers import them from `api.client`."""

import re
from collections.abc import Mapping
from typing import Any, Final

from api.errors import InvalidObject, PartitaError, Retryable

Json = dict[str, Any]


class ApiError(PartitaError):
    """The API server refused. `status` is the HTTP code, `body` the Status object where there was one."""

    reason = "ApiError"

    def __init__(self, message: str, status: int = 0, body: Json | None = None, retry_after_s: float | None = None):
        super().__init__(message)
        self.status = status
        self.body: Json = body or {}
        self.retry_after_s = retry_after_s


class NotFound(ApiError):
    """No such object, or no such resource (yet)."""

    reason = "NotFound"


class Conflict(ApiError):
    """Somebody else changed or created the object first, or owns the field."""

    reason = "Conflict"

    @property
    def already_exists(self) -> bool:
        return self.body.get("reason") == "AlreadyExists"


class Forbidden(ApiError):
    """Our identity may not do this."""

    reason = "Forbidden"


class Invalid(ApiError, InvalidObject):
    """The object breaks the API's rules."""

    reason = "Invalid"


class Gone(ApiError):
    """The resource version that we continue from is too old: list again."""

    reason = "Gone"


class Unavailable(ApiError, Retryable):
    """The API server did not answer, or answered that it cannot now."""

    reason = "ApiUnavailable"


class TooManyRequests(Unavailable):
    """The API server is shedding load; `retry_after_s` is its wish."""

    reason = "TooManyRequests"


class Unauthorized(Unavailable):
    """The credentials were not accepted; they are read again before the next request."""

    reason = "Unauthorized"


_BY_CODE: Final[Mapping[int, type[ApiError]]] = {
    400: Invalid,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
    422: Invalid,
    429: TooManyRequests,
}


def error_of_status(status: Json, what: str, retry_after: str | None = None) -> ApiError:
    """The error that a `Status` object stands for (k8s.io/apimachinery meta/v1 Status)."""
    code = int(status.get("code") or 0)
    kind = _BY_CODE.get(code) or (Unavailable if code == 0 or code >= 500 else ApiError)
    if status.get("reason") == "Expired":
        kind = Gone
    seconds = retry_after or (status.get("details") or {}).get("retryAfterSeconds")
    after_s = float(seconds) if seconds is not None and re.fullmatch(r"\d+", str(seconds)) else None
    return kind(f"{what}: {status.get('message') or 'no message'} ({code})", code, status, after_s)
