"""A local Coinbase Exchange: one market clock, its trades on sockets and over REST."""

import asyncio
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Self

from websockets.http11 import Response

from simulator.advanced_feed import AdvancedFeed
from simulator.exchange_feed import ExchangeFeed
from simulator.faults import FaultInjector, Faults, Outgoing
from simulator.frames import (
    heartbeat_frame,
    iso,
    match_frame,
    rest_candle,
    rest_product,
    rest_row,
    rest_trade,
)
from simulator.market import (
    DAY,
    PRODUCTS,
    SECOND,
    Market,
    Product,
    Trade,
    candle_of,
    micros,
    spoiled,
)
from simulator.server import (
    AdvancedCounts,
    BadRequestError,
    Feed,
    FeedServer,
    Limits,
    Offered,
    Reader,
    Status,
    json_response,
    not_found,
)

ADVANCED_PATH = "/advanced"
"""Where the Advanced Trade feed is; it has a host of its own at Coinbase."""

GRANULARITIES = (60, 300, 900, 3600, 21600, 86400)
"""The candle lengths Coinbase offers, in seconds."""

_CHUNK_TRADES = 500
_TICK = 0.02
_PAGE = 1000
_MOST_BUCKETS = 300
_TRADES_BETWEEN_BREATHS = 2_000


@dataclass(frozen=True)
class ExchangeConfig:
    """How an exchange runs.

    `start`: market time when it opens, now if None. `end`: market time when the tape stops, never
    if None; heartbeats go on. `speed`: seconds of market time per second, or None for as fast as
    the readers take it: then the clock stands still while nobody is subscribed to a feed that is
    not silent, and no slow reader is disconnected. `port`: 0 picks a free one. `faults` are those
    of the Exchange feed. `absent`: ids, by product, that were never given to a trade.

    Raises:
        ValueError: If the speed is not above 0, the end is not after the start, or a time has no
            time zone.
    """

    seed: int = 0
    start: datetime | None = None
    end: datetime | None = None
    speed: float | None = 1.0
    port: int = 0
    faults: Faults = field(default_factory=Faults)
    advanced_faults: Faults = field(default_factory=Faults)
    absent: Mapping[str, Collection[int]] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    products: tuple[Product, ...] = tuple(PRODUCTS.values())

    def __post_init__(self) -> None:
        if self.speed is not None and not 0 < self.speed < math.inf:
            raise ValueError(f"The speed must be a number above 0, not {self.speed}.")
        start = micros(self.start or datetime.now(UTC))
        if self.end is not None and micros(self.end) <= start:
            raise ValueError(f"The end {self.end.isoformat()} is not after the start.")


class Exchange(FeedServer):
    """Coinbase on a loopback port: `async with Exchange(config) as exchange`.

    `feed` is the Exchange feed, `advanced` the Advanced Trade feed: each can be silenced or cut
    alone.
    """

    def __init__(self, config: ExchangeConfig | None = None) -> None:
        self.config = config or ExchangeConfig()
        super().__init__(self.config.port, self.config.limits)
        self.market = Market(self.config.seed, self.config.products, self.config.absent)
        self.market_time = micros(self.config.start or datetime.now(UTC))
        self.finished = False
        self.end = None if self.config.end is None else micros(self.config.end)
        self.feed = ExchangeFeed(self.limits, self.spawn, self)
        self.advanced = AdvancedFeed(self.limits, self.spawn, self, self.config.advanced_faults)
        self.feeds = (self.feed, self.advanced)
        self._injector = FaultInjector(self.config.faults)
        self._first_ids: dict[str, int] = {}

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        self.spawn(self._run_market())
        return self

    @property
    def advanced_ws_url(self) -> str:
        """The address for sockets of the Advanced Trade feed."""
        return self.ws_url + ADVANCED_PATH

    @property
    def addresses(self) -> dict[str, str]:
        """All addresses, by what is there."""
        return {
            "WebSocket": self.ws_url,
            "Advanced WebSocket": self.advanced_ws_url,
            "REST": self.rest_url,
        }

    def status(self) -> Status:
        """Return what the market offered and what was sent.

        A product's `trades` begin with the `last_match` of its first subscription, or with the
        oldest trade of a snapshot if that is older, and end with the newest trade the market has
        made, whether or not anybody was connected in between.
        """
        trades = {}
        for product_id, first in self._first_ids.items():
            tape = self.market[product_id]
            last = tape.last_trade_id(self.market_time)
            trades[product_id] = Offered(first, last, tape.count(first, last))
        counts, advanced = self.feed.counts, self.advanced.counts
        return Status(
            finished=self.finished,
            market_time=iso(self.market_time),
            trades=trades,
            last_matches=counts["last_match"],
            frames_sent=_sent(counts),
            duplicates=counts["duplicate"],
            late=counts["late"],
            malformed=counts["malformed"],
            dropped=counts["dropped"],
            advanced=AdvancedCounts(
                snapshots=advanced["snapshot"],
                frames_sent=_sent(advanced),
                duplicates=advanced["duplicate"],
                late=advanced["late"],
                malformed=advanced["malformed"],
                dropped=advanced["dropped"],
            ),
        )

    def trades(self, product_id: str, first_id: int, last_id: int) -> Iterator[dict[str, Any]]:
        """Yield the trades made so far between two ids, both included, in id order.

        Each is a row as REST shows it, with its product_id. About 5 s for a million.
        """
        tape = self.market[product_id]
        made = min(last_id, tape.last_trade_id(self.market_time))
        return map(rest_row, tape.trades(first_id, made))

    def list_product(self, product: Product) -> None:
        """Open trading of a new product, now and with trade id 1.

        Raises:
            ValueError: If there is such a product already.
        """
        self.market.list_product(product, self.market_time)

    def delist(self, product_id: str) -> None:
        """End trading of a product now. Whoever is subscribed stays so; REST keeps its trades."""
        self.market.delist(product_id, self.market_time)

    # Sockets.

    def feed_at(self, path: str) -> Feed[Any]:
        """Coinbase serves a feed at any path of its host."""
        return self.advanced if path == ADVANCED_PATH else self.feed

    def refusal(self, product_id: str) -> str | None:
        """Return Coinbase's reason for refusing a product."""
        product = self.market.products.get(product_id)
        if product is None:
            return f"{product_id} is not a valid product"
        return None if product.online else f"{product_id} is delisted"

    def subscribed(self, reader: Reader, product_ids: Sequence[str]) -> None:
        """Send the newest trade of each product as a `last_match`."""
        for product_id in product_ids:
            tape = self.market[product_id]
            last_id = tape.last_trade_id(self.market_time)
            if self.feed.silent:
                continue
            self.offered(product_id, max(last_id, 1))
            if last_id:
                self.feed.send(reader, [match_frame(tape.trade(last_id), "last_match")])
                self.feed.counts["last_match"] += 1

    def offered(self, product_id: str, first_id: int) -> None:
        """Note that a client has a product's trades from this id on."""
        self._first_ids[product_id] = min(self._first_ids.get(product_id, first_id), first_id)

    def heartbeat(self, product_id: str) -> bytes:
        """Return the product's heartbeat with the newest trade id the market has made."""
        tape, now = self.market[product_id], self.market_time
        return heartbeat_frame(product_id, tape.last_trade_id(now), tape.sequence(now), now)

    async def _run_market(self) -> None:
        loop = asyncio.get_running_loop()
        speed = self.config.speed
        began, offset = loop.time(), self.market_time
        while self.end is None or self.market_time < self.end:
            step = self._chunk_length()
            if speed is None:
                if not self._wanted():
                    await asyncio.sleep(_TICK)
                    continue
                self._advance(self.market_time + step)
                await self._drain()
            else:
                if self.market_time + step > offset + (loop.time() - began) * speed * SECOND:
                    await asyncio.sleep(_TICK)
                due = offset + int((loop.time() - began) * speed * SECOND)
                self._advance(min(due, self.market_time + step))
                for feed in self.feeds:
                    feed.disconnect_slow_readers()
            await asyncio.sleep(0)
        self.feed.broadcast(self._injector.flush())
        self.advanced.flush()
        await self._drain()
        self.finished = True

    def _wanted(self) -> set[str]:
        """Return the products somebody gets trades of."""
        return {*self.feed.wanted("matches"), *self.advanced.wanted("market_trades")}

    def _chunk_length(self) -> int:
        """Return the market time in which about 500 wanted trades are made."""
        daily = sum(self.market.products[p].trades_per_day for p in self._wanted())
        return DAY * _CHUNK_TRADES // max(daily, _CHUNK_TRADES)

    def _advance(self, until: int) -> None:
        """Move the clock and send the trades in between, without giving way to other tasks."""
        after = self.market_time
        self.market_time = until if self.end is None else min(until, self.end)
        trades = self.market.between(self.feed.wanted("matches"), after, self.market_time)
        matches = (Outgoing(t.product_id, t.trade_id, t.time, match_frame(t)) for t in trades)
        self.feed.broadcast(self._injector.apply(matches))
        self.advanced.publish(after, self.market_time)

    async def _drain(self) -> None:
        for feed in self.feeds:
            await feed.drain()

    # REST.

    async def respond(self, path: Sequence[str], query: Mapping[str, str]) -> Response:
        """Answer `/time`, `/products` and what lies below it."""
        match list(path):
            case ["time"]:
                epoch = self.market_time / SECOND
                return json_response(json.dumps({"iso": iso(self.market_time), "epoch": epoch}))
            case ["products"]:
                rows = [rest_product(product) for product in self.market.products.values()]
                return json_response(json.dumps(rows))
            case ["products", product_id, *rest] if product_id in self.market.products:
                return await self._product(product_id, rest, query)
        return not_found()

    async def _product(
        self, product_id: str, rest: Sequence[str], query: Mapping[str, str]
    ) -> Response:
        product = self.market.products[product_id]
        match list(rest):
            case []:
                return json_response(json.dumps(rest_product(product)))
            case ["trades"]:
                return self._trades(product_id, query)
            case ["candles"]:
                return await self._candles(product_id, query)
        return not_found()

    def _trades(self, product_id: str, query: Mapping[str, str]) -> Response:
        """Return a page of trades, newest first: ids below `after` and above `before`."""
        tape = self.market[product_id]
        newest = tape.last_trade_id(self.market_time)
        limit = min(_whole(query, "limit", _PAGE), _PAGE)
        if limit < 1:
            raise BadRequestError(f"limit has to be at least 1, not {limit}")
        last_id = min(_whole(query, "after", newest + 1) - 1, newest)
        first_id = _whole(query, "before", 0) + 1
        page = list(islice(tape.newest_first(last_id, first_id), limit))
        cursors = {}
        if page:
            cursors = {"CB-BEFORE": str(page[0].trade_id), "CB-AFTER": str(page[-1].trade_id)}
        return json_response(f"[{','.join(map(rest_trade, page))}]", headers=cursors)

    async def _candles(self, product_id: str, query: Mapping[str, str]) -> Response:
        """Return candles, newest first, of the buckets from `start` to `end`, both included.

        Computed from the trades: about half a second for a day of BTC-USD.
        """
        granularity = _whole(query, "granularity", 60)
        if granularity not in GRANULARITIES:
            raise BadRequestError("Unsupported granularity")
        now = self.market_time // SECOND
        if "start" in query and "end" in query:
            start, end = _seconds(query["start"]), _seconds(query["end"])
        else:
            start, end = now - (_MOST_BUCKETS - 1) * granularity, now
        start -= start % granularity
        if (end - start) // granularity >= _MOST_BUCKETS:
            raise BadRequestError(
                "granularity too small for the requested time range. "
                f"Count of aggregations requested exceeds {_MOST_BUCKETS}"
            )
        rows = []
        for time in range(start, end + 1, granularity):
            trades = await self._bucket(product_id, time, granularity)
            fault = self.rest_faults.of_candle(product_id, granularity, time) if trades else None
            if fault:
                self.rest_spoilt[fault] += 1
            if trades and fault != "left_out":
                candle = candle_of(time, trades)
                rows.append(rest_candle(spoiled(candle) if fault == "wrong" else candle))
        return json_response(f"[{','.join(reversed(rows))}]")

    async def _bucket(self, product_id: str, time: int, granularity: int) -> list[Trade]:
        """Return a bucket's trades up to the market's present; gives way to the sockets."""
        tape = self.market[product_id]
        until = min((time + granularity) * SECOND - 1, self.market_time)
        first_id, last_id = tape.last_trade_id(time * SECOND - 1) + 1, tape.last_trade_id(until)
        trades: list[Trade] = []
        for low in range(first_id, last_id + 1, _TRADES_BETWEEN_BREATHS):
            trades += tape.trades(low, min(low + _TRADES_BETWEEN_BREATHS - 1, last_id))
            await asyncio.sleep(0)
        return trades


def _sent(counts: Mapping[str, int]) -> int:
    return sum(counts[kind] for kind in ("intact", "duplicate", "late", "malformed"))


def _whole(query: Mapping[str, str], name: str, default: int) -> int:
    text = query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise BadRequestError(f"{name} has to be a whole number, not {text}")
    return int(text)


def _seconds(text: str) -> int:
    """Read a request's time, ISO 8601 (UTC where no zone is given) or seconds since 1970."""
    try:
        if text.isdigit():
            return int(text)
        at = datetime.fromisoformat(text)
    except ValueError:
        raise BadRequestError(f"{text} is not a time") from None
    return micros(at if at.tzinfo else at.replace(tzinfo=UTC)) // SECOND
