"""Trade-id bookkeeping: which trades of a product were skipped. Pure, without a clock."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import pairwise
from operator import attrgetter
from typing import Final, NamedTuple

MAX_ID: Final = 10**18 - 1
"""What silver takes for a trade id; the ids of 2026 have ten digits (FEED.md)."""
MOST_SKIPPED: Final = 100_000_000
"""Ids that one jump may skip: BTC-USD makes so many trades in half a year (FEED.md). An id beyond
is not believed until the next one bears it out, for all that follow would look late."""


class IdRange(NamedTuple):
    """Trade ids of one product, from `first` to `last`, both included."""

    first: int
    last: int


def count(ranges: Iterable[IdRange]) -> int:
    """Return how many ids there are in ranges."""
    return sum(last - first + 1 for first, last in ranges)


def clip(ranges: Iterable[IdRange], first: int, last: int) -> list[IdRange]:
    """Return what of the ranges lies between two ids, both included."""
    clipped = (IdRange(max(low, first), min(high, last)) for low, high in ranges)
    return [part for part in clipped if part.first <= part.last]


def intersect(these: Sequence[IdRange], those: Sequence[IdRange]) -> list[IdRange]:
    """Return the ids that are in both; each is in ascending order."""
    both, at, other = [], 0, 0
    while at < len(these) and other < len(those):
        first = max(these[at].first, those[other].first)
        last = min(these[at].last, those[other].last)
        if first <= last:
            both.append(IdRange(first, last))
        if these[at].last < those[other].last:
            at += 1
        else:
            other += 1
    return both


def subtract(these: Sequence[IdRange], those: Sequence[IdRange]) -> list[IdRange]:
    """Return the ids of the one that are not in the other; each is in ascending order."""
    edges = [0, *(edge for first, last in those for edge in (first - 1, last + 1)), MAX_ID]
    between = [IdRange(low, high) for low, high in zip(edges[::2], edges[1::2], strict=True)]
    return intersect(these, [part for part in between if part.first <= part.last])


def contains(ranges: Sequence[IdRange], trade_id: int) -> bool:
    """Tell whether an id is in ranges that are in ascending order."""
    at = bisect_right(ranges, trade_id, key=_first) - 1
    return at >= 0 and trade_id <= ranges[at].last


_PRODUCT: Final = re.compile(r"[A-Z0-9]{1,20}(-[A-Z0-9]{1,20}){1,3}")
"""A product's id. A frame may hold anything in its place, also what no table takes."""

_first, _last = attrgetter("first"), attrgetter("last")


class TradeIdTracker:
    """Remembers, per product, the highest trade id seen and which ids below it are missing.

    Coinbase numbers a product's trades one by one (FEED.md: measured, no gap in 170 matches of 12
    products), so a jump is a gap. Tracking of a product begins with its first trade or heartbeat,
    or where an earlier run left off: ids from before are not missing.
    """

    def __init__(self) -> None:
        self._products: dict[str, _Product] = {}

    def observe(self, product_id: str, trade_id: int) -> bool:
        """Record a trade and return whether it skips some.

        A late trade closes or splits the gap that it was missing from; a duplicate changes nothing.
        """
        product = self._products.get(product_id)
        if product is None or not product.confirmed:
            return self._begin(product_id, trade_id, seen=True)
        expected = product.highest + 1
        if trade_id == expected:
            product.highest = trade_id
            return False
        if trade_id < expected:
            if product.highest < product.first:
                # Nothing was seen yet, only announced: tracking begins with this trade.
                product.first = product.highest = trade_id
                return product.announced > trade_id
            product.fill(trade_id)
            return False
        if not product.believes(trade_id):
            return False
        product.skip_to(trade_id)
        return True

    def announce(self, product_id: str, last_trade_id: int) -> bool:
        """Record the newest id that the exchange tells; return whether some trades are not here.

        They may still be on their way. 0 means that the exchange doesn't know (FEED.md).
        """
        product = self._products.get(product_id)
        if product is None or not product.confirmed:
            return self._begin(product_id, last_trade_id, seen=False)
        if last_trade_id > product.announced and product.believes(last_trade_id):
            product.announced = last_trade_id
        return product.announced > product.highest

    def miss(self, product_id: str, trade_id: int) -> bool:
        """Record a trade that came and could not be kept; return whether some are missing."""
        if product_id not in self._products and _is_id(product_id, trade_id):
            self._products[product_id] = _Product(trade_id, trade_id - 1)
        return self.announce(product_id, trade_id)

    def _begin(self, product_id: str, trade_id: int, *, seen: bool) -> bool:
        """Take the first id of a product, which counts once a second one is near it."""
        if not _is_id(product_id, trade_id):
            return False
        product = self._products.get(product_id)
        if product is None or abs(trade_id - product.highest) > MOST_SKIPPED:
            first = trade_id if seen else trade_id + 1
            self._products[product_id] = _Product(first, trade_id)
            return False
        if seen and trade_id == product.highest >= product.first:
            return False
        product.confirmed = True
        return self.observe(product_id, trade_id) if seen else self.announce(product_id, trade_id)

    def lose(self, product_id: str, trade_id: int) -> None:
        """Record that a trade that was seen is missing after all: its frame can't be used."""
        product = self._products.get(product_id)
        if product is not None and product.first <= trade_id <= product.highest:
            product.lose(trade_id)

    def resume(self, product_id: str, covered: Sequence[IdRange]) -> None:
        """Go on from what earlier runs have accounted for, which is not nothing.

        Missing are the holes in it, and what lies between it and the trades of this run, which may
        have seen some already.
        """
        newest = covered[-1].last
        product = self._products.get(product_id)
        doubtful = product is None or not product.confirmed
        if product is None or (doubtful and abs(product.highest - newest) > MOST_SKIPPED):
            product = self._products[product_id] = _Product(newest + 1, newest)
        product.confirmed = True
        holes = [IdRange(low.last + 1, high.first - 1) for low, high in pairwise(covered)]
        if product.first > newest + 1:
            holes.append(IdRange(newest + 1, product.first - 1))
        holes = clip(holes, 0, product.first - 1)
        product.first = min(product.first, covered[0].first)
        product.prepend(holes)

    def missing(self, product_id: str, last: int | None = None) -> list[IdRange]:
        """Return the missing ids in ascending order, announced ones included, up to one of them."""
        product = self._products.get(product_id)
        if product is None:
            return []
        missing = [*product.gaps]
        if product.announced > product.highest:
            missing.append(IdRange(product.highest + 1, product.announced))
        return missing if last is None else clip(missing, 0, last)

    def highest(self, product_id: str) -> int | None:
        """Return the highest trade id seen, if any; missing ones above it were announced."""
        product = self._products.get(product_id)
        return None if product is None else product.highest

    def last_missing(self, product_id: str) -> int | None:
        """Return the highest missing id, if one is missing."""
        product = self._products.get(product_id)
        if product is None:
            return None
        if product.announced > product.highest:
            return product.announced
        return product.gaps[-1].last if product.gaps else None

    def forget(self, product_id: str, ranges: Iterable[IdRange]) -> None:
        """Take missing ids off, for they are recorded as a gap: from now on they count as seen."""
        product = self._products[product_id]
        for first, last in ranges:
            product.forget(first, last)

    def accounted_for(self) -> dict[str, list[IdRange]]:
        """Return, per product, the ids that were seen or forgotten: all but the missing ones."""
        return {
            product_id: product.accounted_for()
            for product_id, product in self._products.items()
            if product.confirmed and product.first <= product.highest
        }

    def missing_trades(self) -> dict[str, int]:
        """Return how many trades are missing now, for each product observed."""
        return {
            product_id: product.missing + max(product.announced - product.highest, 0)
            for product_id, product in list(self._products.items())
        }


def _is_id(product_id: str, trade_id: int) -> bool:
    return 0 < trade_id <= MAX_ID and _PRODUCT.fullmatch(product_id) is not None


class _Product:
    """What is known of one product: where it began, its highest id, and the gaps in between.

    The gaps are in ascending order.
    """

    __slots__ = ("announced", "confirmed", "doubted", "first", "gaps", "highest", "missing")

    def __init__(self, first: int, highest: int) -> None:
        self.first = first
        self.highest = highest
        self.announced = highest
        self.confirmed = False
        self.doubted: int | None = None
        self.gaps: list[IdRange] = []
        self.missing = 0

    def believes(self, trade_id: int) -> bool:
        """Tell whether an id above the highest can be true."""
        doubted, self.doubted = self.doubted, None
        if trade_id - self.highest <= MOST_SKIPPED:
            return True
        if trade_id > MAX_ID:
            return False
        if doubted is not None and 0 < trade_id - doubted <= MOST_SKIPPED:
            return True
        self.doubted = trade_id
        return False

    def skip_to(self, trade_id: int) -> None:
        """Record a trade above the next one."""
        self.gaps.append(IdRange(self.highest + 1, trade_id - 1))
        self.missing += trade_id - self.highest - 1
        self.highest = trade_id

    def prepend(self, holes: list[IdRange]) -> None:
        """Add gaps that lie before all others."""
        self.gaps[:0] = holes
        self.missing += count(holes)

    def fill(self, trade_id: int) -> None:
        """Take an id out of the gap that holds it, if one does."""
        at = bisect_right(self.gaps, trade_id, key=_first) - 1
        if at < 0 or self.gaps[at].last < trade_id:
            return
        first, last = self.gaps[at]
        left = (IdRange(first, trade_id - 1), IdRange(trade_id + 1, last))
        self.gaps[at : at + 1] = [part for part in left if part.first <= part.last]
        self.missing -= 1

    def lose(self, trade_id: int) -> None:
        """Make a gap of an id that is in none."""
        if not contains(self.gaps, trade_id):
            at = bisect_right(self.gaps, trade_id, key=_first)
            self.gaps.insert(at, IdRange(trade_id, trade_id))
            self.missing += 1

    def forget(self, first: int, last: int) -> None:
        """Take all missing ids between two off."""
        begin = bisect_left(self.gaps, first, key=_last)
        end = bisect_right(self.gaps, last, key=_first)
        touched = self.gaps[begin:end]
        left = [
            part
            for gap in touched
            for part in (IdRange(gap.first, first - 1), IdRange(last + 1, gap.last))
            if part.first <= part.last
        ]
        self.gaps[begin:end] = left
        self.missing -= count(touched) - count(left)
        if last > self.highest >= first - 1:
            self.highest = last

    def accounted_for(self) -> list[IdRange]:
        """Return the ids up to the highest that are not missing."""
        edges = [self.first - 1, *(edge for gap in self.gaps for edge in gap), self.highest + 1]
        seen = (
            IdRange(before + 1, after - 1)
            for before, after in zip(edges[::2], edges[1::2], strict=True)
        )
        return [part for part in seen if part.first <= part.last]


class GapWatch:
    """Tells which trades have been missing for longer than a grace time.

    Args:
        tracker: knows which trades are missing.
        grace: how long a trade may be missing before it is told, in seconds: it may just be late.

    """

    def __init__(self, tracker: TradeIdTracker, grace: float) -> None:
        self._tracker = tracker
        self._grace = grace
        # Per product, in ascending order: from when on what is missing up to which id is told.
        self._due: dict[str, deque[tuple[float, int]]] = {}

    def add(self, product_id: str, now: float) -> None:
        """Note that some trades are missing at `now`, in seconds of any clock that only rises."""
        last = self._tracker.last_missing(product_id)
        if last is None:
            return
        at = now + self._grace
        due = self._due.setdefault(product_id, deque())
        # In steps of a second: where nothing can be kept, each trade of a feed is missing.
        if len(due) > 1 and at - due[-2][0] < 1:
            due.pop()
        due.append((at, last))

    def standing(self, now: float) -> dict[str, list[IdRange]]:
        """Return, per product, what is missing for longer than the grace; again until forgotten."""
        found: dict[str, list[IdRange]] = {}
        for product_id, due in self._due.items():
            while len(due) > 1 and due[1][0] <= now:
                due.popleft()
            if due[0][0] <= now:
                missing = self._tracker.missing(product_id, due[0][1])
                if missing:
                    found[product_id] = missing
        return found
