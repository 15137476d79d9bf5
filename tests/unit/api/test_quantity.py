"""Quantities mean and print what Kubernetes makes of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.errors import InvalidObject
from api.quantity import canonical_quantity, format_quantity, parse_quantity


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("1", 1),
        ("10Gi", 10 * 1024**3),
        ("1.5Gi", 3 * 512 * 1024**2),
        ("8Ei", 8 * 1024**6),
        ("5k", 5000),
        ("5M", 5 * 10**6),
        ("2E", 2 * 10**18),
        ("1e3", 1000),
        ("1E3", 1000),
        ("12e-1", 2),
        ("1500m", 2),
        ("2000m", 2),
        ("1u", 1),
        ("-1", -1),
        ("+7", 7),
        (".5Ki", 512),
        ("5.", 5),
        (12, 12),
    ],
)
def test_the_integer_value_is_that_of_kubernetes_rounded_up(text: str | int, value: int) -> None:
    assert parse_quantity(text) == value


@pytest.mark.parametrize("text", ["", "Gi", "1 Gi", "1gi", "1KI", "1K", "0x10", "1e", "1e3Gi", "--1", "1Gi ", "∞"])
def test_what_is_no_quantity_is_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidObject, match="is not a quantity"):
        parse_quantity(text)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1, "1"),
        (132, "132"),
        (1000, "1k"),
        (1024, "1Ki"),
        (1536, "1536"),
        (2048, "2Ki"),
        (81559 * 1024**2, "81559Mi"),
        (80 * 1024**3, "80Gi"),
        (1536000, "1500Ki"),
    ],
)
def test_integers_print_as_the_server_stores_them(value: int, text: str) -> None:
    assert format_quantity(value) == text


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("1024Ki", "1Mi"),
        ("1000", "1k"),
        ("1500m", "1500m"),
        ("1.5", "1500m"),
        ("0.5Gi", "512Mi"),
        ("1e3", "1k"),
        ("512", "512"),
        ("0Gi", "0"),
        ("100Ki", "100Ki"),
        ("1000Mi", "1000Mi"),
        (1000, "1k"),
    ],
)
def test_texts_are_brought_to_the_form_that_the_server_stores(text: str | int, canonical: str) -> None:
    assert canonical_quantity(text) == canonical


@given(st.integers(-(2**62), 2**62))
def test_what_is_printed_reads_back_and_is_canonical_already(value: int) -> None:
    text = format_quantity(value)
    assert parse_quantity(text) == value
    assert canonical_quantity(text) == text
