"""Numbers as people read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llamaperf.wording import amount, change, counted, interval


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (463.1, "tok/s", "463.1 tok/s"),
        (31302.7, "tok/s", "31,303 tok/s"),
        (10000.0, "tok/s", "10,000 tok/s"),
        (9999.0, "tok/s", "9,999.0 tok/s"),
        (1234.56, "tok/s", "1,234.6 tok/s"),
        (100.0, "tok/s", "100.0 tok/s"),
        (99.5, "tok/s", "99.50 tok/s"),
        (49.6, "tok/s", "49.60 tok/s"),
        (2.0, "s", "2.00 s"),
        (1.0, "s", "1.00 s"),
        (0.2, "s", "200 ms"),
        (0.1, "s", "100 ms"),
        (0.0201, "s", "20.1 ms"),
        (0.00123, "s", "1.23 ms"),
        (123.4, "s", "123.4 s"),
        (1.16, "x", "1.16x"),
        (5.6, "x", "5.60x"),
        (47.7 * 2**30, "B", "47.7 GiB"),
        (0.7213, "fraction", "72.13 %"),
        (6.2412, "1", "6.241"),
    ],
)
def test_an_amount_is_written_in_the_unit_that_reads_best(value: float, unit: str, text: str) -> None:
    assert amount(value, unit) == text


@pytest.mark.parametrize("value", [9.8765, 1.2345, 0.12345, 0.0012345])
def test_a_slow_speed_is_not_rounded_away(value: float) -> None:
    shown = amount(value, "tok/s").removesuffix(" tok/s")

    assert float(shown) == pytest.approx(value, rel=0.005)


@given(st.floats(1e-5, 1e6))
def test_a_duration_is_written_without_exponent_and_to_within_a_percent(seconds: float) -> None:
    number, unit = amount(seconds, "s").split()

    assert "e" not in number
    assert float(number.replace(",", "")) / {"s": 1, "ms": 1e3}[unit] == pytest.approx(seconds, rel=0.01)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.9994, "999 ms"), (0.9996, "1.00 s"), (1.0, "1.00 s"), (0.0999, "99.9 ms"), (0.09996, "100 ms")],
)
def test_durations_near_a_power_of_ten_are_written_like_their_neighbours(seconds: float, text: str) -> None:
    assert amount(seconds, "s") == text


@pytest.mark.parametrize(
    ("value", "reference", "text"),
    [
        (465.9, 463.1, "+0.6 %"),
        (350.0, 463.1, "-24.4 %"),
        (100.0, 100.0, "+0.0 %"),
        (250.0, 100.0, "+150.0 %"),
        (0.0, 100.0, "-100.0 %"),
    ],
)
def test_a_change_is_relative_to_the_reference_and_has_a_sign(value: float, reference: float, text: str) -> None:
    assert change(value, reference) == text


def test_an_interval_is_written_with_both_ends_and_not_at_all_without_one() -> None:
    assert interval(455.0, 471.2, "tok/s") == " (455.0 tok/s to 471.2 tok/s)"
    assert interval(None, 471.2, "tok/s") == ""
    assert interval(455.0, None, "tok/s") == ""


@pytest.mark.parametrize(("number", "text"), [(0, "0 cases"), (1, "1 case"), (2, "2 cases"), (30000, "30,000 cases")])
def test_things_are_counted_with_their_plural(number: int, text: str) -> None:
    assert counted(number, "case") == text


def test_a_change_from_zero_is_none_in_percent() -> None:
    assert change(0.5, 0.0) == "from zero"
    assert change(0.0, 0.0) == "+0.0 %"
