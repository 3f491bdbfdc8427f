"""Fills the gaps of the ledger over REST, page by page."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

import structlog

from ingestion.bronze import TradeRow
from ingestion.coinbase.rest import RestClient, RestRefusedError
from ingestion.continuity import IdRange, clip, contains, count
from ingestion.errors import LedgerAwayError
from ingestion.gaps import GapLedger

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
                if not claimed:
                    return
                try:
                    came += await self.fill(product_id, missing)
                except RestRefusedError as error:
                    log.warning("repair_refused", product_id=product_id, reason=str(error))
                    await self._ledger.postpone(product_id, self._again)

        async with asyncio.TaskGroup() as tasks:
            for product_id, missing in (await self._ledger.due()).items():
                tasks.create_task(fill(product_id, missing))
        return came > 0

    async def fill(
        self, product_id: str, missing: Sequence[IdRange], most_pages: int = PAGES_A_TURN
    ) -> int:
        """Fetch these ids, newest first, and return how many trades came.

        What the exchange does not have stays missing, or is closed as absent after enough tries.
        What more than the pages hold is left for another turn.

        Raises:
            RestRefusedError: the exchange doesn't know the product.

        """
        left, found, pages = list(missing), 0, 0
        while left and pages < most_pages:
            pages += 1
            after = left[-1].last + 1
            page = await self._rest.trades(product_id, after)
            wanted = [trade for trade in page if contains(left, trade.trade_id)]
            if wanted:
                received_at = datetime.now(UTC)
                rows: list[TradeRow] = [
                    (received_at, SOURCE, CHANNEL, self._session_id, product_id, trade.payload)
                    for trade in reversed(wanted)
                ]
                ids = [trade.trade_id for trade in wanted]
                await self._ledger.save(product_id, rows, ids)
                found += len(wanted)
                self._on_trades(len(wanted))
            # A page tells of all ids from its lowest on; none is below an empty one.
            lowest = min((trade.trade_id for trade in page), default=0)
            left = clip(left, 0, min(lowest, left[-1].last) - 1)
        if left:
            return found
        tried = await self._ledger.tried(product_id, missing, self._again, SOON)
        log.info(
            "gap_repaired" if not (tried.missing or tried.absent) else "gap_tried",
            product_id=product_id,
            first=missing[0].first,
            last=missing[-1].last,
            asked=count(missing),
            repaired=found,
            missing=tried.missing,
            absent=tried.absent,
        )
        return found
