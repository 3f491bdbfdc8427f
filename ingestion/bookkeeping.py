"""Keeps the tracker of trade ids and the ledger in the database in step."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import structlog

from ingestion.bronze import BronzeWriter, TradeRow
from ingestion.coinbase.rest import RestClient, RestRefusedError
from ingestion.coinbase.wire import trades_in
from ingestion.continuity import GapWatch, IdRange, TradeIdTracker, count, intersect
from ingestion.errors import LedgerAwayError
from ingestion.gaps import FoundBy, GapLedger

log = structlog.get_logger(__name__)

CHECK_SECONDS: Final = 1.0
COVER_SECONDS: Final = 5.0
"""What came since is read back after a kill, so it need not be often."""
CHECK_PATIENCE_SECONDS: Final = 10.0
MOST_FIRST_TRADES: Final = 1_000_000
"""A product that is new in the catalogue, and has a higher id, is listed again, not new."""


class Bookkeeper:
    """Records gaps once they stand, and what is accounted for once it is committed.

    Args:
        tracker: knows which trades were seen and which are missing.
        gaps: tells which have been missing for long enough.
        writer: tells what is committed.
        ledger: keeps it.
        rest: tells the newest trade id of a product, where the feed left doubts.
        on_gap: is called when a gap was recorded.
        all_products: go on with every product that was ever followed.

    """

    def __init__(
        self,
        tracker: TradeIdTracker,
        gaps: GapWatch,
        writer: BronzeWriter,
        ledger: GapLedger,
        rest: RestClient,
        on_gap: Callable[[], None],
        *,
        all_products: bool,
    ) -> None:
        self._tracker = tracker
        self._gaps = gaps
        self._writer = writer
        self._ledger = ledger
        self._rest = rest
        self._on_gap = on_gap
        self._all_products = all_products
        self._known: set[str] = set()
        self._to_resume: set[str] = set()
        self._resumed: set[str] = set()
        self._to_check: deque[str] = deque()
        self._listed: set[str] = set()
        self._covered: dict[str, list[IdRange]] = {}
        self._open: dict[str, int] = {}
        self._in_spool = 0

    def follow(self, products: Iterable[str]) -> None:
        """Go on with these products where earlier runs left off."""
        news = set(products) - self._known
        self._known |= news
        self._to_resume |= news

    def begin(self, products: Iterable[str]) -> None:
        """Follow products that were listed a moment ago, from their first trade on."""
        self._listed |= set(products) - self._known
        self.follow(products)

    def check(self, products: Iterable[str]) -> None:
        """Ask the exchange for the newest trade ids of these products."""
        self._to_check.extend(name for name in products if name not in self._to_check)

    def refused(self, row: TradeRow) -> None:
        """Take the trades of a frame that PostgreSQL refuses for missing: REST has them, too."""
        *_, channel, _session_id, _product_id, frame = row
        for product_id, trade_id in trades_in(channel, frame):
            self._tracker.lose(product_id, trade_id)
            self._gaps.add(product_id, time.monotonic())

    def missing_trades(self) -> dict[str, int]:
        """Return how many trades are missing per product, as far as is known."""
        missing = dict(self._open)
        for product_id, trades in self._tracker.missing_trades().items():
            missing[product_id] = missing.get(product_id, 0) + trades
        return missing

    async def run(self) -> None:
        """Keep both in step until cancelled."""
        self._in_spool = self._writer.taken
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._every(CHECK_SECONDS, self._resume))
            tasks.create_task(self._every(CHECK_SECONDS, self._keep_gaps))
            tasks.create_task(self._every(COVER_SECONDS, self._keep_coverage))
            tasks.create_task(self._every(CHECK_SECONDS, self._check_ids))

    async def close(self) -> None:
        """Write what is accounted for, once everything is committed.

        What is missing now comes no more: it is a gap without any grace.
        """
        await self._resume()
        await self._ledger.cover(self._accounted_for(), await self._ledger.last_bronze_id())
        for product_id in self._tracker.missing_trades():
            missing = self._tracker.missing(product_id)
            if missing:
                await self._record(product_id, missing)

    async def _every(self, seconds: float, step: Callable[[], Awaitable[None]]) -> None:
        away = False
        while True:
            try:
                await step()
            except LedgerAwayError as error:
                if not away:
                    log.warning("gaps_not_recorded", error=str(error))
                away = True
            else:
                away = False
            await asyncio.sleep(seconds)

    async def _keep_gaps(self) -> None:
        accounted_for = self._tracker.accounted_for()
        for product_id, missing in self._gaps.standing(time.monotonic()).items():
            # Its trades first: what lies before the first id that is covered is history.
            seen = product_id in accounted_for
            if product_id in (self._covered if seen else self._resumed):
                await self._record(product_id, missing)
        if self._open:
            self._open = await self._ledger.open_trades()

    async def _resume(self) -> None:
        """Find what was missed since earlier runs; the feed may have begun already."""
        # A feed may name them otherwise than they were asked for.
        self.follow(self._tracker.missing_trades())
        # What an earlier run left in the spool is not missing: it is read back with the rest.
        if not self._to_resume or self._writer.done < self._in_spool:
            return
        if self._all_products:
            # Also of those that were delisted meanwhile, the last trades may be missing.
            self._all_products = False
            self.follow(await self._ledger.products())
        products = sorted(self._to_resume)
        left_off = await self._ledger.left_off(products)
        self._to_resume.difference_update(products)
        self._resumed.update(products)
        for product_id, left in left_off.items():
            self._tracker.resume(product_id, left.covered)
            for trade_id in left.came_since:
                self._tracker.observe(product_id, trade_id)
            self._gaps.add(product_id, time.monotonic())
            log.info("resumed", product_id=product_id, after=left.covered[-1].last)
        # The feed may never tell: a product may have been delisted meanwhile.
        self.check(left_off)

    async def _begin_listed(self) -> None:
        """Look for the trades that a product made between its listing and its first frame."""
        for product_id in sorted(self._listed - self._to_resume):
            highest = self._tracker.highest(product_id)
            if highest is None:
                continue
            self._listed.remove(product_id)
            if highest <= MOST_FIRST_TRADES:
                # As if id 0 had been seen: ids begin with 1.
                self._tracker.resume(product_id, [IdRange(0, 0)])
                self._gaps.add(product_id, time.monotonic())

    async def _record(self, product_id: str, missing: list[IdRange]) -> None:
        highest = self._tracker.highest(product_id) or 0
        parts: dict[FoundBy, list[IdRange]] = {"jump": [], "announced": []}
        for part in missing:
            parts["announced" if part.first > highest else "jump"].append(part)
        for found_by, ranges in parts.items():
            if not ranges:
                continue
            recorded = await self._ledger.record(product_id, ranges, found_by)
            self._tracker.forget(product_id, ranges)
            if recorded:
                self._open[product_id] = self._open.get(product_id, 0) + count(recorded)
                log.warning(
                    "gap_found",
                    product_id=product_id,
                    first=recorded[0].first,
                    last=recorded[-1].last,
                    trades=count(recorded),
                    found_by=found_by,
                )
                self._on_gap()

    async def _keep_coverage(self) -> None:
        # Another ingester may have found some.
        self._open = await self._ledger.open_trades()
        # In this order: what comes after the snapshot gets higher ids.
        bronze_id = await self._ledger.last_bronze_id()
        accounted_for, taken = self._accounted_for(), self._writer.taken
        while self._writer.done < taken:  # noqa: ASYNC110  (seldom, and no hurry)
            await asyncio.sleep(0.1)
        # Some of them may have been refused since.
        now = self._accounted_for()
        news = {
            product_id: intersect(ranges, now[product_id])
            for product_id, ranges in accounted_for.items()
            if self._covered.get(product_id) != ranges
        }
        if news:
            await self._ledger.cover(news, bronze_id)
            self._covered |= {product_id: accounted_for[product_id] for product_id in news}

    def _accounted_for(self) -> dict[str, list[IdRange]]:
        """Return what is accounted for of the products whose earlier runs are known.

        Of the others it would hide what an earlier run left behind.
        """
        accounted_for = self._tracker.accounted_for()
        return {name: ids for name, ids in accounted_for.items() if name in self._resumed}

    async def _check_ids(self) -> None:
        await self._begin_listed()
        while self._to_check:
            product_id = self._to_check.popleft()
            try:
                async with asyncio.timeout(CHECK_PATIENCE_SECONDS):
                    newest = await self._rest.trades(product_id, limit=1)
            except RestRefusedError as error:
                log.warning("ids_not_checked", product_id=product_id, reason=str(error))
                continue
            except TimeoutError:
                self._to_check.append(product_id)
                return
            if newest and self._tracker.announce(product_id, newest[0].trade_id):
                self._gaps.add(product_id, time.monotonic())
