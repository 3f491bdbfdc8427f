"""Which products are read, and over which connections."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import structlog

from ingestion.coinbase.feed import AdvancedFeed, ExchangeFeed, Feed, FrameSink
from ingestion.coinbase.rest import RestClient, RestRefusedError
from ingestion.errors import FatalFeedError
from ingestion.settings import IngestionSettings

log = structlog.get_logger(__name__)

CATALOGUE_SECONDS: Final = 300.0
"""Between two looks for products that were listed or delisted."""


class Subscriptions:
    """Reads the products of the settings, on as many connections as they need.

    A feed that can't be read is given up alone, as long as another one is left.

    Args:
        settings: which products and feeds.
        rest: tells which products are traded, where all are wanted.
        sink: makes the sink of a new connection, for the source of its frames.
        on_products: is told the products that are read.
        on_listed: is told those that were listed while others were read already.
        on_delisted: is told those that are read no more.

    """

    def __init__(
        self,
        settings: IngestionSettings,
        rest: RestClient,
        *,
        sink: Callable[[type[Feed]], FrameSink],
        on_products: Callable[[tuple[str, ...]], None],
        on_listed: Callable[[tuple[str, ...]], None],
        on_delisted: Callable[[tuple[str, ...]], None],
    ) -> None:
        self._settings = settings
        self._rest = rest
        self._sink = sink
        self._on_products = on_products
        self._on_listed = on_listed
        self._on_delisted = on_delisted
        self._urls: dict[type[Feed], str] = {}
        if settings.coinbase_feed in {"exchange", "both"}:
            self._urls[ExchangeFeed] = settings.coinbase_ws_url
        if settings.coinbase_feed in {"advanced", "both"}:
            self._urls[AdvancedFeed] = settings.coinbase_advanced_ws_url
        self._reading: dict[asyncio.Task[None], Feed] = {}

    async def run(self) -> None:
        """Read until cancelled.

        Raises:
            FatalFeedError: no feed can be read, and no retry will cure it.

        """
        looking: asyncio.Task[None] | None = None
        try:
            if self._settings.all_products:
                await self._assign(await self._traded())
                looking = asyncio.create_task(self._look_again())
            else:
                await self._assign(self._settings.coinbase_products)
            while True:
                tasks = [*self._reading, *([looking] if looking else [])]
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                if looking in done:
                    looking.result()
                    looking = asyncio.create_task(self._look_again())
                for task in done & self._reading.keys():
                    self._give_up(task)
        finally:
            tasks = [*self._reading, *([looking] if looking else [])]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _give_up(self, task: asyncio.Task[None]) -> None:
        """Go on without a feed that ended, unless it was the last."""
        del self._reading[task]
        error = task.exception()
        if not isinstance(error, FatalFeedError) or not self._reading:
            task.result()
        log.error("feed_given_up", reason=str(error))

    async def _traded(self) -> tuple[str, ...]:
        try:
            catalogue = await self._rest.products()
        except RestRefusedError as error:
            raise FatalFeedError(
                f"The products can't be read: {error}. Correct COINBASE_REST_URL, or name the "
                "products in COINBASE_PRODUCTS."
            ) from None
        return tuple(sorted(product.id for product in catalogue if product.is_traded))

    async def _look_again(self) -> None:
        await asyncio.sleep(CATALOGUE_SECONDS)
        try:
            await self._assign(await self._traded())
        except FatalFeedError as error:
            log.warning("products_not_read", reason=str(error))

    async def _assign(self, products: tuple[str, ...]) -> None:
        """Have just these products read: on the connections that there are, then on new ones."""
        for kind in self._urls:
            feeds = {task: feed for task, feed in self._reading.items() if isinstance(feed, kind)}
            followed = {product for feed in feeds.values() for product in feed.products}
            added = [product for product in products if product not in followed]
            dropped = followed.difference(products)
            if followed and (added or dropped):
                log.info("products_changed", listed=tuple(added), delisted=sorted(dropped))
                self._on_listed(tuple(added))
                self._on_delisted(tuple(dropped))
            for task, feed in feeds.items():
                kept = [product for product in feed.products if product not in dropped]
                room = self._settings.products_per_connection - len(kept)
                kept += added[:room]
                del added[:room]
                if not kept:
                    del self._reading[task]
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
                elif tuple(kept) != feed.products:
                    await feed.follow(tuple(kept))
            for part in _parts(added, self._settings.products_per_connection):
                self._read(kind, part)
        self._on_products(products)

    def _read(self, kind: type[Feed], products: tuple[str, ...]) -> None:
        feed = kind(
            self._urls[kind],
            products,
            silence_seconds=self._settings.silence_seconds,
            sink=self._sink(kind),
        )
        self._reading[asyncio.create_task(feed.run())] = feed


def _parts(products: Sequence[str], size: int) -> Iterable[tuple[str, ...]]:
    return (tuple(products[at : at + size]) for at in range(0, len(products), size))
