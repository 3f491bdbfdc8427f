"""Trade-id bookkeeping: which trades of a product were skipped. Pure, without a clock."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Gap:
    """Trades of one product that were not seen: the ids from `first` to `last`, both included."""

    product_id: str
    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first + 1


class TradeIdTracker:
    """Remembers, per product, the highest trade id seen and which ids below it are missing.

    Coinbase numbers a product's trades one by one (FEED.md: measured, no gap in 170 matches of 12
    products), so a jump is a gap. Tracking of a product begins with its first trade or heartbeat:
    ids from before are not missing.
    """

    def __init__(self) -> None:
        self._products: dict[str, _Product] = {}

    def observe(self, product_id: str, trade_id: int) -> Gap | None:
        """Record a trade and return the gap in front of it, if it jumps.

        A late trade closes or splits the gap that it was missing from; a duplicate changes nothing.
        """
        product = self._products.get(product_id)
        if product is None:
            self._products[product_id] = _Product(trade_id)
            return None
        expected = product.highest + 1
        if trade_id == expected:
            product.highest = trade_id
            return None
        if trade_id < expected:
            product.fill(trade_id)
            return None
        product.firsts.append(expected)
        product.lasts.append(trade_id - 1)
        product.missing += trade_id - expected
        product.highest = trade_id
        return Gap(product_id, expected, trade_id - 1)

    def observe_last(self, product_id: str, last_trade_id: int) -> Gap | None:
        """Record the newest id that a heartbeat tells, and return the trades up to it not yet seen.

        They may still be on their way. 0 means that the exchange doesn't know (FEED.md).
        """
        if last_trade_id <= 0:
            return None
        product = self._products.get(product_id)
        if product is None:
            self._products[product_id] = _Product(last_trade_id)
            return None
        product.announced = max(product.announced, last_trade_id)
        return product.tail(product_id)

    def resume(self, product_id: str, trade_id: int) -> None:
        """Continue after `trade_id`, the newest trade known from before; call it first.

        Raises:
            ValueError: the product was already observed.

        """
        if product_id in self._products:
            raise ValueError(f"{product_id} was already observed: resume before observing")
        self._products[product_id] = _Product(trade_id)

    def missing(self, product_id: str) -> list[Gap]:
        """Return the open gaps of a product in ascending order, announced trades included."""
        product = self._products.get(product_id)
        if product is None:
            return []
        return product.open_within(product_id, 0, max(product.highest, product.announced))

    def missing_within(self, gap: Gap) -> list[Gap]:
        """Return what is still missing of a gap, in ascending order."""
        product = self._products.get(gap.product_id)
        return [] if product is None else product.open_within(gap.product_id, gap.first, gap.last)

    def missing_trades(self) -> dict[str, int]:
        """Return how many trades are missing now, for each product observed."""
        return {
            product_id: product.missing + max(product.announced - product.highest, 0)
            for product_id, product in list(self._products.items())
        }


class _Product:
    """What is known of one product: its highest id, and the gaps below in ascending order."""

    __slots__ = ("announced", "firsts", "highest", "lasts", "missing")

    def __init__(self, highest: int) -> None:
        self.highest = highest
        self.announced = highest
        self.firsts: list[int] = []
        self.lasts: list[int] = []
        self.missing = 0

    def fill(self, trade_id: int) -> None:
        """Take an id out of the gap that holds it, if one does."""
        at = bisect_right(self.firsts, trade_id) - 1
        if at < 0 or self.lasts[at] < trade_id:
            return
        self.missing -= 1
        first, last = self.firsts[at], self.lasts[at]
        if first == last:
            del self.firsts[at], self.lasts[at]
        elif trade_id == first:
            self.firsts[at] = trade_id + 1
        elif trade_id == last:
            self.lasts[at] = trade_id - 1
        else:
            self.lasts[at] = trade_id - 1
            self.firsts.insert(at + 1, trade_id + 1)
            self.lasts.insert(at + 1, last)

    def open_within(self, product_id: str, low: int, high: int) -> list[Gap]:
        """Return the missing ids from `low` to `high`, without looking at the gaps elsewhere."""
        begin = bisect_left(self.lasts, low)
        end = bisect_right(self.firsts, high)
        gaps = [
            Gap(product_id, max(first, low), min(last, high))
            for first, last in zip(self.firsts[begin:end], self.lasts[begin:end], strict=True)
        ]
        first, last = max(self.highest + 1, low), min(self.announced, high)
        return [*gaps, Gap(product_id, first, last)] if first <= last else gaps

    def tail(self, product_id: str) -> Gap | None:
        """Return the trades that were announced above the highest seen."""
        if self.announced <= self.highest:
            return None
        return Gap(product_id, self.highest + 1, self.announced)


class GapWatch:
    """Tells which gaps have stood longer than a grace time, each trade once.

    Args:
        tracker: knows which trades are still missing.
        grace: how long a gap may stand before it is told, in seconds: a trade may just be late.

    """

    def __init__(self, tracker: TradeIdTracker, grace: float) -> None:
        self._tracker = tracker
        self._grace = grace
        self._waiting: list[tuple[float, Gap]] = []
        self._told: dict[str, int] = {}

    def add(self, gap: Gap, now: float) -> None:
        """Note a gap that was found at `now`, in seconds of any clock that only rises."""
        self._waiting.append((now + self._grace, gap))

    def standing(self, now: float) -> list[Gap]:
        """Return what is still missing of the gaps whose grace has passed."""
        due = [gap for at, gap in self._waiting if at <= now]
        self._waiting = [entry for entry in self._waiting if entry[0] > now]
        found: list[Gap] = []
        # Gaps of a product are found in ascending order, so one mark tells what was told before: an
        # announced tail comes again with each heartbeat.
        for gap in due:
            first = max(gap.first, self._told.get(gap.product_id, gap.first - 1) + 1)
            if first <= gap.last:
                self._told[gap.product_id] = gap.last
                found += self._tracker.missing_within(Gap(gap.product_id, first, gap.last))
        return found
