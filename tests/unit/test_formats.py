"""Numbers on the market page: prices from 1e-8 to 1e6 with the digits that matter."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from dashboards import formats


@pytest.mark.parametrize(
    ("prices", "written"),
    [
        (["1234567.8", "1234567.85"], ["1,234,567.80", "1,234,567.85"]),
        (["84172", "84100"], ["84,172.00", "84,100.00"]),
        (["0.5234", "0.52"], ["0.5234", "0.5200"]),
        (["0.00000411", "0.0000041"], ["0.00000411", "0.00000410"]),
        (["0.00000001"], ["0.00000001"]),
        (["1E+6"], ["1,000,000.00"]),
        (["NaN"], ["NaN"]),
    ],
)
def test_the_prices_of_a_product_have_the_decimals_of_its_finest(
    prices: list[str], written: list[str]
) -> None:
    values = [Decimal(text) for text in prices]
    decimals = formats.tick_decimals(values)
    assert [formats.price(value, decimals) for value in values] == written


def test_an_average_of_tiny_prices_shows_where_between_them_it_lies() -> None:
    assert formats.average(Decimal("0.0000000912"), 8) == "0.0000000912"
    assert formats.average(Decimal("84168.185451"), 2) == "84,168.19"


def test_a_price_that_is_not_there_is_a_dash() -> None:
    assert formats.tick_decimals([]) == 2
    assert formats.price(None, 2) == formats.amount(None) == formats.change(None) == formats.NONE


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("0", "0"),
        ("0.0041449", "0.00414"),
        ("1.234", "1.23"),
        ("56.78", "56.8"),
        ("999", "999"),
        ("999.6", "1.00 k"),
        ("1024", "1.02 k"),
        ("999600", "1.00 M"),
        ("12000000000", "12.0 B"),
        ("3.4e13", "34.0 T"),
    ],
)
def test_an_amount_has_three_digits_and_a_unit(value: str, written: str) -> None:
    assert formats.amount(Decimal(value)) == written


@pytest.mark.parametrize(
    ("percent", "written"),
    [
        ("1.236", "+1.24 %"),
        ("-0.5", "\N{MINUS SIGN}0.50 %"),
        ("-0.001", "0.00 %"),
        ("1234.5", "+1,234.50 %"),
    ],
)
def test_a_change_has_its_sign(percent: str, written: str) -> None:
    assert formats.change(Decimal(percent)) == written


@pytest.mark.parametrize(
    ("value", "written"), [("1", "100 %"), ("0.9999999", "99.999 %"), ("0", "0.000 %")]
)
def test_a_share_is_whole_only_where_nothing_lacks(value: str, written: str) -> None:
    assert formats.share(Decimal(value)) == written


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (-3, "0.0 s ago"),
        (0.44, "0.4 s ago"),
        (12.4, "12 s ago"),
        (3599, "59 min ago"),
        (3600, "1 h ago"),
    ],
)
def test_an_age_has_one_unit(seconds: float, written: str) -> None:
    now = datetime(2026, 11, 25, tzinfo=UTC)
    assert formats.age(now - timedelta(seconds=seconds), now) == written
