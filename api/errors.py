"""The error tree. An error says whose move it is, and carries what a person needs to act.

PartitaError
├── InvalidObject         the author of an object must change it; retrying cannot help
│   └── ClaimError        ... and the object is a ResourceClaim
├── Retryable             nothing is wrong with the request; try again
│   └── Busy              ... when a named holder lets go
├── HardwareError         the device or its library refused
└── StateUnreadable       what we wrote earlier cannot be read back
"""


class PartitaError(Exception):
    """Root of all errors that we raise on purpose."""

    reason: str = "Error"
    """Closed vocabulary for metrics labels, Event reasons and condition reasons (CamelCase)."""


class InvalidObject(PartitaError):
    """An object holds a value that no retry will make acceptable. The message names object, field and what is right."""

    reason = "InvalidObject"


class ClaimError(InvalidObject):
    """A ResourceClaim cannot be prepared as it is.

    `claim` is `<namespace>/<name>`; `reason` is a CamelCase word for Events and metrics.
    """

    reason = "InvalidClaim"

    def __init__(self, claim: str, message: str, *, reason: str = "InvalidClaim") -> None:
        super().__init__(f"claim {claim}: {message}")
        self.claim = claim
        self.reason = reason


class Retryable(PartitaError):
    """The same request may succeed later, with nobody changing anything."""

    reason = "NotReadyYet"


class Busy(Retryable):
    """Somebody else holds what is needed; the message names the holder. `holders`: UIDs, where they are claims."""

    reason = "Busy"

    def __init__(self, message: str, holders: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.holders = holders


class HardwareError(PartitaError):
    """A device or its vendor library refused; see `kubeletplugin.hardware.backend` for the kinds."""

    reason = "HardwareError"


class StateUnreadable(PartitaError):
    """A file that we wrote cannot be read back: truncated, altered, or from a newer version."""

    reason = "StateUnreadable"


class NewerState(StateUnreadable):
    """The file is whole, but a newer version of this program wrote it."""
