"""How deep an object may be nested for us to read it."""

import sys
from typing import Final

NESTING: Final = 6_500
"""10 KiB of opaque parameters (resource/v1 OpaqueParametersMaxLength) are anybody's to write, and can be nested 5,120
levels deep. Python needs 1.5 MiB of stack for this. (Python 3.12 has limits of its own, which depend on its build.)"""


def allow_deep_objects() -> None:
    """For the whole process, from its `main`: Python's own limit is 1,000 levels, for its calls and its JSON alike."""
    sys.setrecursionlimit(max(NESTING, sys.getrecursionlimit()))
