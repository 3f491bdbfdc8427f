"""A local Coinbase Exchange: one market clock, its trades on sockets and over REST."""

import asyncio
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Self

from websockets.http11 import Response

from simulator.faults import FaultInjector, Faults, Frame
from simulator.frames import (
    heartbeat_frame,
    iso,
    match_frame,
    rest_candle,
    rest_product,
    rest_trade,
)
from simulator.market import DAY, PRODUCTS, SECOND, Market, Product, Trade, candle_of, micros
from simulator.server import (
    BadRequestError,
    FeedServer,
    Limits,
    Offered,
    Reader,
    Status,
    json_response,
    not_found,
)

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
    the readers take it: then the clock stands still while nobody is subscribed or the server is
    silent, and no slow reader is disconnected. `port`: 0 picks a free one.

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
    limits: Limits = field(default_factory=Limits)
    products: tuple[Product, ...] = tuple(PRODUCTS.values())

    def __post_init__(self) -> None:
        if self.speed is not None and not 0 < self.speed < math.inf:
            raise ValueError(f"The speed must be a number above 0, not {self.speed}.")
        start = micros(self.start or datetime.now(UTC))
        if self.end is not None and micros(self.end) <= start:
            raise ValueError(f"The end {self.end.isoformat()} is not after the start.")


class Exchange(FeedServer):
    """Coinbase Exchange on a loopback port: `async with Exchange(config) as exchange`."""

    def __init__(self, config: ExchangeConfig | None = None) -> None:
        self.config = config or ExchangeConfig()
        super().__init__(self.config.port, self.config.limits)
        self.market = Market(self.config.seed, self.config.products)
        self.market_time = micros(self.config.start or datetime.now(UTC))
        self.finished = False
        self._end = None if self.config.end is None else micros(self.config.end)
        self._injector = FaultInjector(self.config.faults)
        self._first_ids: dict[str, int] = {}

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        self.spawn(self._run_market())
        return self

    def status(self) -> Status:
        """Return what the market offered and what was sent.

        A product's `trades` begin with the `last_match` of its first subscription and end with
        the newest trade the market has made, whether or not anybody was connected in between.
        """
        trades = {}
        for product_id, first in self._first_ids.items():
            last = self.market[product_id].last_trade_id(self.market_time)
            trades[product_id] = Offered(first, last, last - first + 1)
        counts = self.counts
        return Status(
            finished=self.finished,
            market_time=iso(self.market_time),
            trades=trades,
            last_matches=counts["last_match"],
            frames_sent=sum(counts[k] for k in ("match", "duplicate", "late", "malformed")),
            duplicates=counts["duplicate"],
            late=counts["late"],
            malformed=counts["malformed"],
            dropped=counts["dropped"],
        )

    # Sockets.

    def accepts_path(self, path: str) -> bool:
        """Coinbase serves its feed at any path."""
        return bool(path)

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
            if last_id and not self.silent:
                self._first_ids.setdefault(product_id, last_id)
                self.send(reader, [match_frame(tape.trade(last_id), "last_match")])
                self.counts["last_match"] += 1

    def heartbeat(self, product_id: str) -> bytes:
        """Return the product's heartbeat with the newest trade id the market has made."""
        tape, now = self.market[product_id], self.market_time
        return heartbeat_frame(product_id, tape.last_trade_id(now), tape.sequence(now), now)

    async def _run_market(self) -> None:
        loop = asyncio.get_running_loop()
        speed = self.config.speed
        began, offset = loop.time(), self.market_time
        while self._end is None or self.market_time < self._end:
            step = self._chunk_length()
            if speed is None:
                if self.silent or not self._wanted():
                    await asyncio.sleep(_TICK)
                    continue
                self._advance(self.market_time + step)
                await self._drain()
            else:
                if self.market_time + step > offset + (loop.time() - began) * speed * SECOND:
                    await asyncio.sleep(_TICK)
                due = offset + int((loop.time() - began) * speed * SECOND)
                self._advance(min(due, self.market_time + step))
                self._disconnect_slow_readers()
            await asyncio.sleep(0)
        self._broadcast(self._injector.flush())
        await self._drain()
        self.finished = True

    def _wanted(self) -> list[str]:
        """Return the products somebody gets matches of."""
        readers = (reader for reader in self.readers if reader.open)
        return list({p: None for reader in readers for p in reader.products("matches")})

    def _chunk_length(self) -> int:
        """Return the market time in which about 500 wanted trades are made."""
        daily = sum(self.market.products[p].trades_per_day for p in self._wanted())
        return DAY * _CHUNK_TRADES // max(daily, _CHUNK_TRADES)

    def _advance(self, until: int) -> None:
        """Move the clock and send the trades in between, without giving way to other tasks."""
        until = until if self._end is None else min(until, self._end)
        trades = [] if self.silent else self.market.between(self._wanted(), self.market_time, until)
        self.market_time = until
        self._broadcast(self._injector.apply(trades))

    def _broadcast(self, frames: Iterable[Frame]) -> None:
        frames = list(frames)
        products = {frame.product_id for frame in frames}
        if self.silent or not frames:
            return
        for reader in filter(lambda reader: reader.open, self.readers):
            subscribed = reader.products("matches")
            own = frames
            if not products <= subscribed.keys():
                own = [frame for frame in frames if frame.product_id in subscribed]
            self.counts.update(frame.kind for frame in own)
            reader.write(frame for frame in own if frame.kind != "dropped")

    async def _drain(self) -> None:
        for reader in tuple(self.readers):
            await reader.drain()

    def _disconnect_slow_readers(self) -> None:
        for reader in self.readers:
            if reader.unread_bytes > self.limits.unread_bytes and reader.channels:
                reader.channels.clear()
                self.spawn(self.refuse(reader, "ErrSlowConsume"))

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
            case ["trades"] if product.online:
                return self._trades(product_id, query)
            case ["candles"] if product.online:
                return await self._candles(product_id, query)
            case ["trades" | "candles"]:
                return json_response("[]")
        return not_found()

    def _trades(self, product_id: str, query: Mapping[str, str]) -> Response:
        """Return a page of trades, newest first: ids below `after` and above `before`."""
        tape = self.market[product_id]
        newest = tape.last_trade_id(self.market_time)
        limit = min(_whole(query, "limit", _PAGE), _PAGE)
        if limit < 1:
            raise BadRequestError(f"limit has to be at least 1, not {limit}")
        last_id = min(_whole(query, "after", newest + 1) - 1, newest)
        first_id = max(_whole(query, "before", 0) + 1, last_id - limit + 1, 1)
        rows = [rest_trade(trade) for trade in tape.trades(first_id, last_id)]
        rows.reverse()
        cursors = {"CB-BEFORE": str(last_id), "CB-AFTER": str(first_id)} if rows else {}
        return json_response(f"[{','.join(rows)}]", headers=cursors)

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
            if trades:
                rows.append(rest_candle(candle_of(time, trades)))
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
