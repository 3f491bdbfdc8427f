"""How numbers and times read: digits that matter, in columns that align."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Final
from zoneinfo import available_timezones

NONE: Final = "\N{EN DASH}"
MINUS: Final = "\N{MINUS SIGN}"
LEAST_DECIMALS: Final = 2
MOST_DECIMALS: Final = 12
UNITS: Final = (
    (Decimal(10) ** 12, "T"),
    (Decimal(10) ** 9, "B"),
    (Decimal(10) ** 6, "M"),
    (Decimal(10) ** 3, "k"),
)
TIME_ZONES: Final = tuple(sorted(available_timezones()))
"""Looked for in the file system once, and not for each run of the page."""
LENGTHS: Final = ((86400, "d"), (3600, "h"), (60, "min"))


def tick_decimals(prices: Iterable[Decimal]) -> int:
    """Return how many decimals these prices are written with: those of the finest of them."""
    finest = max((_decimals(price) for price in prices), default=LEAST_DECIMALS)
    return min(max(finest, LEAST_DECIMALS), MOST_DECIMALS)


def _decimals(price: Decimal) -> int:
    exponent = price.normalize().as_tuple().exponent
    # Of NaN and the infinities it is a letter.
    return -exponent if isinstance(exponent, int) else 0


def price(value: Decimal | None, decimals: int) -> str:
    """Write a price: 84,172.76, 0.00000411."""
    return NONE if value is None else f"{value:,.{decimals}f}"


def average(value: Decimal, decimals: int) -> str:
    """Write an average of prices: below 1 with two digits more, for it may lie between ticks."""
    return price(value, decimals + 2 if value < 1 else decimals)


def amount(value: Decimal | int | None) -> str:
    """Write a volume with three or four digits: 12.3 B, 1.02 k, 0.00414."""
    if value is None:
        return NONE
    value = Decimal(value)
    for unit, letter in UNITS:
        # What rounds up to the unit is written in it: 1.00 k, not 1,000.
        if abs(value) >= unit * Decimal("0.9995"):
            return f"{_three_digits(value / unit)} {letter}"
    return _three_digits(value)


def _three_digits(value: Decimal) -> str:
    if value == 0:
        return "0"
    rounded = Decimal(f"{value:.2e}")
    decimals = min(max(2 - rounded.adjusted(), 0), MOST_DECIMALS)
    return f"{rounded:.{decimals}f}"


def change(percent: Decimal | None, decimals: int = 2) -> str:
    """Write a change in percent with its sign: +1.24 % or 0.00 %, with a true minus."""
    if percent is None:
        return NONE
    rounded = round(percent, decimals)
    sign = "+" if rounded > 0 else MINUS if rounded < 0 else ""
    return f"{sign}{abs(rounded):,.{decimals}f} %"


def share(value: Decimal) -> str:
    """Write a share of 1 in percent, cut and not rounded: 100 % means that nothing lacks."""
    percent = (100 * value).quantize(Decimal("0.001"), rounding="ROUND_DOWN")
    return "100 %" if percent == 100 else f"{percent} %"


def length(time: timedelta | None) -> str:
    """Write a length of time: 0.4 s, 12 s, 5 min, 3 h, 2 d."""
    if time is None:
        return NONE
    seconds = max(time.total_seconds(), 0.0)
    for size, letters in LENGTHS:
        if seconds >= size:
            return f"{int(seconds / size)} {letters}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def age(moment: datetime | None, now: datetime) -> str:
    """Write how long ago a moment was; one that is yet to come was just now."""
    if moment is None:
        return NONE
    return f"{length(now - moment)} ago"
