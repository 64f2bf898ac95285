"""Numbers as people read them: by example, and read back."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftlab_mlflow.analytics.units import count, duration, format_value, memory, number

FINITE = st.floats(-1e300, 1e300)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (1, "1"), (-0.5, "-0.5"), (0.693147, "0.6931"), (2.3, "2.3"), (2.34567, "2.346"),
        (8.7e-5, "8.7e-05"), (1e-4, "1e-04"), (0.002, "0.002"), (0.00099996, "0.001"), (9.99996, "10"),
        (12345.67, "12,346"), (999_999_999.9, "1e+09"), (5e12, "5e+12"), (True, "1"),
    ],
)  # fmt: skip
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


@given(FINITE)
def test_a_number_reads_back_to_four_digits(value: float) -> None:
    assert math.isclose(float(number(value).replace(",", "")), value, rel_tol=5.1e-4)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"), (0.0123, "12.3 ms"), (0.9999, "1 s"), (8.254, "8.25 s"), (9.999, "10 s"), (45.4, "45 s"),
        (59.7, "1 min"), (61, "1 min 1 s"), (200, "3 min 20 s"), (3599.9, "1 h"), (11_520, "3 h 12 min"),
        (86_399, "1 d"), (187_140, "2 d 4 h"), (10_000_000, "115 d 18 h"), (-5, "-5 s"),
    ],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@given(st.floats(1e-3, 1e9))
def test_a_duration_reads_back(seconds: float) -> None:
    sizes = {"d": 86_400, "h": 3_600, "min": 60, "s": 1, "ms": 1e-3}
    parts = re.findall(r"([\d.,]+) (\w+)", duration(seconds))
    total = sum(float(figure.replace(",", "")) * sizes[unit] for figure, unit in parts)
    # Two units, the smaller one rounded: at worst half an hour of one day.
    assert math.isclose(total, seconds, rel_tol=0.5 / 23)
    assert 1 <= len(parts) <= 2


@pytest.mark.parametrize(
    ("size", "decimal", "binary"),
    [
        (0, "0 B", "0 B"), (512, "512 B", "512 B"), (999.9, "1 kB", "1,000 B"), (1023.9, "1.02 kB", "1 KiB"),
        (1.53e9, "1.53 GB", "1.42 GiB"), (85_520_809_984, "85.5 GB", "79.6 GiB"),
        (5e15, "5,000 TB", "4,547 TiB"),
    ],
)  # fmt: skip
def test_memory(size: float, decimal: str, binary: str) -> None:
    assert (memory(size), memory(size, binary=True)) == (decimal, binary)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.693147, "", "0.6931"), (1234.56, "tokens/s", "1,235 tokens/s"), (87.345, "%", "87.34 %"),
        (12_345.0, "tokens", "12,345 tokens"), (11_520, "s", "3 h 12 min"), (81_559, "MB", "81.6 GB"),
        (81.559, "GB", "81.6 GB"), (1536, "B", "1.54 kB"),
    ],
)  # fmt: skip
def test_values_with_their_units(value: float, unit: str, text: str) -> None:
    assert format_value(value, unit) == text


def test_memory_in_the_units_of_choice() -> None:
    assert format_value(81_559, "MB", binary=True) == "76 GiB"


@pytest.mark.parametrize("unit", ["", "s", "MB", "tokens", "tokens/s", "%"])
@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (math.nan, "NaN"), (math.inf, "+∞"), (-math.inf, "−∞")]
)
def test_what_is_no_number_is_seen_as_such(value: float | None, text: str, unit: str) -> None:
    assert format_value(value, unit) == text
    assert count(value) == number(value) == duration(value) == memory(value) == text
