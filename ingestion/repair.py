"""Fills the gaps of the ledger over REST, page by page."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

import structlog

from ingestion.bronze import RejectedRow, TradeRow
from ingestion.coinbase.rest import RestClient, RestRefusedError, RestTrade
from ingestion.continuity import MAX_ID, IdRange, clip, contains, count, subtract
from ingestion.errors import LedgerAwayError
from ingestion.gaps import GapLedger, RowRefusedError, is_being_cancelled

log = structlog.get_logger(__name__)

SOURCE: Final = "rest"
CHANNEL: Final = "trades"
AGAIN: Final = timedelta(hours=1)
"""Between two tries for ids that the exchange doesn't have."""
SOON: Final = timedelta(seconds=10)
"""Between two tries while REST may just be behind the socket."""
PRODUCTS_AT_ONCE: Final = 4
PAGES_A_TURN: Final = 50
"""A product with a long gap lets the others have their turn, after some five seconds."""
TURN_SECONDS: Final = 60.0
"""How long one product that the exchange doesn't answer for may hold up the others."""
LATER: Final = timedelta(minutes=1)
LOOK_SECONDS: Final = 5.0
FIRST_RETRY_SECONDS: Final = 0.5
LONGEST_RETRY_SECONDS: Final = 30.0


class Repairer:
    """Brings missing trades to bronze.

    Args:
        ledger: knows what is missing.
        rest: asks the exchange.
        session_id: marks the rows that this run brings.
        again: how long to wait before ids that the exchange doesn't have are asked for again.
        on_trades: is told how many trades have just been committed.

    """

    def __init__(
        self,
        ledger: GapLedger,
        rest: RestClient,
        session_id: UUID,
        *,
        again: timedelta = AGAIN,
        on_trades: Callable[[int], None] = lambda _trades: None,
    ) -> None:
        self._ledger = ledger
        self._rest = rest
        self._session_id = session_id
        self._again = again
        self._on_trades = on_trades
        self._wake = asyncio.Event()
        self._in_vain: dict[str, list[IdRange]] = {}

    def look(self) -> None:
        """Look at once whether something is to be done."""
        self._wake.set()

    async def run(self) -> None:
        """Fill gaps as they are due, until cancelled."""
        failures = 0
        while True:
            self._wake.clear()
            try:
                more = await self.fill_what_is_due()
            except ExceptionGroup as group:
                away, others = group.split(LedgerAwayError)
                if others is not None or away is None:
                    raise
                if is_being_cancelled():
                    # Before Python 3.13, a group of tasks raises their errors in its place.
                    raise asyncio.CancelledError from group
                delay = min(FIRST_RETRY_SECONDS * 2**failures, LONGEST_RETRY_SECONDS)
                failures = min(failures + 1, 16)
                log.warning("repair_paused", error=str(away.exceptions[0]), retry_in=delay)
                await asyncio.sleep(delay)
                continue
            failures = 0
            if more:
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._wake.wait()

    async def fill_what_is_due(self) -> bool:
        """Give each product a turn; return whether any trades came, so that more may follow."""
        turns = asyncio.Semaphore(PRODUCTS_AT_ONCE)
        came = 0

        async def fill(product_id: str, missing: list[IdRange]) -> None:
            nonlocal came
            async with turns, self._ledger.claim(product_id) as claimed:
                if claimed:
                    came += await self.take_turn(product_id, missing)

        async with asyncio.TaskGroup() as tasks:
            for product_id, missing in (await self._ledger.due()).items():
                tasks.create_task(fill(product_id, missing))
        return came > 0

    async def take_turn(self, product_id: str, missing: Sequence[IdRange]) -> int:
        """Fetch some of these ids, newest first, and return how many trades came.

        What the exchange does not have stays missing, or is closed as absent after enough tries.
        What is left is for another turn; where the exchange does not answer, for a later one.
        """
        in_vain = self._in_vain.get(product_id, [])
        left = subtract(missing, in_vain)
        came: list[IdRange] = []
        try:
            async with asyncio.timeout(TURN_SECONDS):
                for _ in range(PAGES_A_TURN):
                    if not left:
                        break
                    found, left = await self._ask_for_a_page(product_id, left)
                    came += found
        except RestRefusedError as error:
            log.warning("repair_refused", product_id=product_id, reason=str(error))
            await self._ledger.postpone(product_id, self._again)
        except TimeoutError:
            log.warning("repair_postponed", product_id=product_id, seconds=LATER.total_seconds())
            await self._ledger.postpone(product_id, LATER)
        if left:
            # Another turn begins below what was asked for in vain, not with it.
            asked = clip(missing, left[-1].last + 1, MAX_ID)
            in_vain = clip(in_vain, 0, left[-1].last) + subtract(asked, sorted(came))
            self._in_vain[product_id] = in_vain
        else:
            self._in_vain.pop(product_id, None)
            await self._count_try(product_id, missing, count(came))
        return count(came)

    async def _ask_for_a_page(
        self, product_id: str, left: list[IdRange]
    ) -> tuple[list[IdRange], list[IdRange]]:
        """Save what one page has of these ids; return them, and the ids that it says nothing of."""
        last = left[-1].last
        page = await self._rest.trades(product_id, after=last + 1)
        wanted = [trade for trade in page if contains(left, trade.trade_id)]
        if wanted:
            await self._save(product_id, wanted)
        # A page tells of all ids from its lowest on; none is below an empty one.
        lowest = min((trade.trade_id for trade in page), default=0)
        found = [IdRange(trade.trade_id, trade.trade_id) for trade in wanted]
        return found, clip(left, 0, min(lowest, last) - 1)

    async def _save(self, product_id: str, trades: list[RestTrade]) -> None:
        """Save trades, at once or, where PostgreSQL refuses some, one by one."""
        received_at = datetime.now(UTC)
        rows: list[TradeRow] = [
            (received_at, SOURCE, CHANNEL, self._session_id, product_id, trade.payload)
            for trade in reversed(trades)
        ]
        ids = [trade.trade_id for trade in reversed(trades)]
        try:
            await self._ledger.save(product_id, rows, ids)
        except RowRefusedError as error:
            if len(rows) == 1:
                refused = RejectedRow(
                    received_at, SOURCE, self._session_id, trades[0].payload, str(error)
                )
                await self._ledger.set_aside(refused)
                log.warning("rest_trade_refused", product_id=product_id, reason=str(error))
                return
            for trade in reversed(trades):
                await self._save(product_id, [trade])
            return
        self._on_trades(len(ids))

    async def _count_try(self, product_id: str, missing: Sequence[IdRange], came: int) -> None:
        """Note that all of these ids were asked for."""
        self._in_vain.pop(product_id, None)
        tried = await self._ledger.tried(product_id, missing, self._again, SOON)
        log.info(
            "gap_tried" if tried.missing or tried.absent else "gap_repaired",
            product_id=product_id,
            first=missing[0].first,
            last=missing[-1].last,
            came=came,
            missing=tried.missing,
            absent=tried.absent,
        )
