"""Kubernetes quantities and integers.

Grammar and canonical form: k8s.io/apimachinery pkg/api/resource (`<signed number><suffix>`).
"""

import math
import re
from fractions import Fraction
from typing import Final

from api.errors import InvalidObject

_BINARY: Final = ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei")
_DECIMAL: Final = ("", "k", "M", "G", "T", "P", "E")
_SCALE: Final[dict[str, Fraction]] = {
    **{suffix: Fraction(1024**i) for i, suffix in enumerate(_BINARY)},
    **{suffix: Fraction(1000**i) for i, suffix in enumerate(_DECIMAL)},
    "m": Fraction(1, 10**3),
    "u": Fraction(1, 10**6),
    "n": Fraction(1, 10**9),
}
_QUANTITY: Final = re.compile(r"([+-]?)(\d+(?:\.\d*)?|\.\d+)(?:([eE])([+-]?\d{1,3})|(Ki|Mi|Gi|Ti|Pi|Ei|[numkMGTPE])?)")


def _parse(text: str) -> tuple[Fraction, bool]:
    """The exact value, and whether it was written with a binary suffix."""
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise InvalidObject(f"{text!r} is not a quantity; right would be a number with an optional suffix, as in 10Gi")
    sign, digits, exponent_mark, exponent, suffix = match.groups()
    value = Fraction(digits if digits[-1] != "." else digits[:-1])
    value = value * Fraction(10) ** int(exponent) if exponent_mark else value * _SCALE[suffix or ""]
    return (-value if sign == "-" else value), bool(suffix) and suffix[-1] == "i"


def parse_quantity(text: str | int) -> int:
    """The integer value, rounded up as `Quantity.Value()` does. Raises InvalidObject."""
    return text if isinstance(text, int) else math.ceil(_parse(text)[0])


def format_quantity(value: int) -> str:
    """`value` as the API server stores it: the binary suffix where one divides it, else the decimal form."""
    if value % 1024 == 0 and abs(value) >= 1024:
        return _with_suffix(value, 1024, _BINARY)
    return _with_suffix(value, 1000, _DECIMAL)


def canonical_quantity(text: str | int) -> str:
    """`text` in the form in which the API server stores it. Raises InvalidObject."""
    if isinstance(text, int):
        return _with_suffix(text, 1000, _DECIMAL)
    value, binary = _parse(text)
    if value.denominator == 1:
        if binary and abs(value) >= 1024:
            return _with_suffix(int(value), 1024, _BINARY)
        return _with_suffix(int(value), 1000, _DECIMAL)
    for suffix in ("m", "u", "n"):
        scaled = value / _SCALE[suffix]
        if scaled.denominator == 1:
            return f"{scaled.numerator}{suffix}"
    return f"{math.ceil(value / _SCALE['n'])}n"  # finer than nano is rounded up (ParseQuantity)


def _with_suffix(value: int, base: int, suffixes: tuple[str, ...]) -> str:
    power = 0
    while value != 0 and value % base == 0 and power < len(suffixes) - 1:
        value //= base
        power += 1
    return f"{value}{suffixes[power]}"
