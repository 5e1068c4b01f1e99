from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import units


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (units.parse_duration_ns, "300ms", 300_000_000),
        (units.parse_duration_ns, "0.2 ms", 200_000),
        (units.parse_duration_ns, "0", 0),
        (units.parse_bytes, "1024MiB", 1 << 30),
        (units.parse_bytes, "1GB", 10**9),
        (units.parse_bit_rate, "1Gbit", 10**9),
        (units.parse_bit_rate, "25Gbit/s", 25 * 10**9),
        (units.parse_bit_rate, "10MB/s", 80_000_000),
        (units.parse_byte_rate, "40MiB/s", 40 << 20),
        (units.parse_byte_rate, "8Mbit", 1_000_000),
        (units.parse_fraction, "0.5%", 0.005),
        (units.parse_fraction, 0.25, 0.25),
    ],
)
def test_text_with_units_is_read(parse, text, value):
    assert parse(text) == value


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (units.parse_duration_ns, "300"),
        (units.parse_duration_ns, "-1ms"),
        (units.parse_duration_ns, "1Gbit"),
        (units.parse_duration_ns, 5),
        (units.parse_bytes, "3 parsecs"),
        (units.parse_bytes, "9" * 60 + "GiB"),
        (units.parse_bytes, "9" * 100),
        (units.parse_bit_rate, "1MiB"),
        (units.parse_byte_rate, "40MiB"),
        (units.parse_fraction, "101%"),
        (units.parse_fraction, True),
    ],
)
def test_what_is_no_quantity_is_refused_with_what_is_allowed(parse, text):
    with pytest.raises(ValueError, match=r"such as|percentage"):
        parse(text)


@given(st.integers(min_value=0, max_value=10**15))
def test_nanoseconds_round_trip(value):
    assert units.parse_duration_ns(f"{value}ns") == value


@given(st.integers(min_value=-(10**12), max_value=10**15))
def test_a_formatted_duration_has_a_unit(value):
    assert units.format_duration(value).rsplit(" ", 1)[1] in {"ns", "us", "ms", "s"}


def test_formats_choose_the_unit_by_size():
    assert units.format_duration(283_400_000) == "283.4 ms"
    assert units.format_duration(-1_500) == "-1.5 us"
    assert units.format_bytes(1 << 30) == "1 GiB"
    assert units.format_bytes(100) == "100 B"
    assert units.format_bit_rate(933_000_000) == "933 Mbit/s"
