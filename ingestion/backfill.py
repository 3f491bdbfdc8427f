"""History on request: a range of trades is opened as a gap, and repaired as any other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from uuid import uuid4

from ingestion.coinbase.rest import RestClient, RestRefusedError
from ingestion.continuity import IdRange, clip, count
from ingestion.errors import BackfillError
from ingestion.gaps import GapLedger
from ingestion.repair import Repairer

ANOTHER_SECONDS: Final = 1.0
"""How often to look on while a running ingester repairs the product."""


@dataclass(frozen=True)
class Request:
    """What is wanted: trades from an id or a time on.

    With `to_id` all of them up to it are fetched, whether they are in bronze or not; without it
    those that are not, up to the newest.

    Raises:
        BackfillError: it makes no sense.

    """

    product_id: str
    from_id: int | None = None
    to_id: int | None = None
    since: datetime | None = None

    def __post_init__(self) -> None:
        if (self.from_id is None) == (self.since is None):
            raise BackfillError("Say where to begin: give either --from-id or --since.")
        if self.from_id is not None and self.to_id is not None and self.from_id > self.to_id:
            raise BackfillError(
                f"--from-id {self.from_id} is above --to-id {self.to_id}: give the lower id first."
            )
        if self.since is not None and self.since > datetime.now(UTC):
            raise BackfillError(f"--since {self.since.isoformat()} is in the future.")


@dataclass(frozen=True)
class Backfilled:
    """What became of a request."""

    asked: IdRange
    trades: int
    """Trades that were fetched; those that a running ingester fetched are not among them."""
    missing: list[IdRange]
    """What the exchange doesn't have, or not yet; the ingester asks for it again."""
    waiting: list[IdRange]
    """What lies between these trades and the history that is kept, and was not asked for."""


class Backfill:
    """Brings history to bronze.

    Args:
        ledger: keeps what is missing.
        rest: asks the exchange.
        on_progress: is told how many ids are done, and of how many.

    """

    def __init__(
        self, ledger: GapLedger, rest: RestClient, on_progress: Callable[[int, int], None]
    ) -> None:
        self._ledger = ledger
        self._rest = rest
        self._on_progress = on_progress
        self._repairer = Repairer(ledger, rest, uuid4(), on_trades=self._count)
        self._total = self._begun = self._trades = 0

    async def run(self, request: Request) -> Backfilled:
        """Fetch what is wanted.

        A second run goes on where one that was stopped has left off.

        Raises:
            BackfillError: the exchange has no such product or no such trades.

        """
        asked = await self._resolve(request)
        product_id = request.product_id
        again = request.to_id is not None
        waiting = await self._ledger.ask(product_id, asked, again=again)
        while missing := clip((await self._ledger.due()).get(product_id, []), *asked):
            self._total = self._total or count(missing)
            self._begun = self._total - count(missing)
            self._count(0)
            async with self._ledger.claim(product_id) as claimed:
                if claimed:
                    await self._repairer.take_turn(product_id, missing)
            if not claimed:
                await asyncio.sleep(ANOTHER_SECONDS)
        left = await self._ledger.missing(product_id, asked)
        return Backfilled(asked, self._trades, left, waiting)

    def _count(self, trades: int) -> None:
        self._trades += trades
        self._begun += trades
        self._on_progress(self._begun, self._total)

    async def _resolve(self, request: Request) -> IdRange:
        """Turn what is wanted into ids."""
        product_id = request.product_id
        try:
            newest = await self._rest.trades(product_id, limit=1)
        except RestRefusedError as error:
            raise BackfillError(
                f"The exchange has no trades of {product_id!r}: {error}. Give --product as "
                "Coinbase writes it, for example BTC-USD."
            ) from None
        if not newest:
            raise BackfillError(f"The exchange has no trades of {product_id}.")
        last = newest[0].trade_id
        first = request.from_id or 1
        to_id = last if request.to_id is None else request.to_id
        if max(first, to_id) > last:
            raise BackfillError(
                f"The newest trade of {product_id} is {last}: there is no {max(first, to_id)} yet."
            )
        if request.since is not None:
            first = await self._first_since(product_id, request.since, last)
            if first > to_id:
                raise BackfillError(
                    f"{product_id} has no trade from {request.since.isoformat()} up to {to_id}."
                )
        return IdRange(first, to_id)

    async def _first_since(self, product_id: str, since: datetime, last: int) -> int:
        """Find the first trade from a time on by halving: REST has no filter by time (FEED.md)."""
        low, high = 1, last + 1
        while low < high:
            middle = (low + high) // 2
            page = await self._rest.trades(product_id, after=middle + 1, limit=1)
            if page and page[0].time >= since:
                high = page[0].trade_id
            else:
                low = middle + 1
        return low
