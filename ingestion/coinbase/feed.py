"""One socket to a feed: subscribe, notice silence, reconnect."""

from __future__ import annotations

import asyncio
import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from typing import ClassVar, Final, Protocol

import structlog
from websockets.asyncio.client import connect
from websockets.exceptions import (
    ConnectionClosed,
    InvalidProxy,
    InvalidStatus,
    InvalidURI,
    WebSocketException,
)

from ingestion.coinbase.connection import MAX_FRAME_BYTES, BurstConnection
from ingestion.coinbase.wire import (
    MARKET_TRADES_CHANNEL,
    Action,
    AdvancedMessage,
    Message,
    Refusal,
    UnreadableFrameError,
    decode,
    decode_advanced,
    refusal,
    subscribe,
    subscribe_advanced,
    subscribe_heartbeats,
    subscribed_products,
    trade_number,
)
from ingestion.errors import FatalFeedError

log = structlog.get_logger(__name__)

OPEN_SECONDS: Final = 10.0
CLOSE_SECONDS: Final = 2.0
FIRST_RETRY_SECONDS: Final = 0.5
LONGEST_RETRY_SECONDS: Final = 30.0
HEALTHY_SECONDS: Final = 30.0
"""A connection that lasted this long starts the backoff anew."""


class FrameSink(Protocol):
    """Takes what one feed brings. Only `room` may wait: the others are called for each frame."""

    def opened(self, url: str, products: tuple[str, ...]) -> None:
        """Begin a connection that asks for these products."""

    def subscribed(self, products: tuple[str, ...]) -> None:
        """Note which products the exchange has confirmed."""

    def closed(self, reason: str) -> None:
        """End the connection."""

    def arrived(self) -> None:
        """Note the time: the frames that are handed on next have come just now, together."""

    def match(self, frame: bytes, message: Message) -> bool:
        """Take a match or last_match; return whether there is room for another frame."""

    def market_trades(self, frame: bytes, message: AdvancedMessage) -> bool:
        """Take many trades in one frame; return whether there is room for another frame."""

    def unreadable(self, frame: bytes, error: str) -> bool:
        """Take a frame that is no JSON object; return whether there is room for another frame."""

    def heartbeat(self, message: Message) -> None:
        """Take a heartbeat."""

    def other(self, kind: object) -> None:
        """Count a frame of any other type."""

    def frames_dropped(self, products: tuple[str, ...]) -> None:
        """Note that some frames never came, with trades of these products perhaps."""

    async def room(self) -> None:
        """Wait until there is room for another frame."""


class NothingSubscribedError(Exception):
    """The exchange refused every product; the message holds its reasons."""


class Feed(ABC):
    """Reads the trades of some products for ever, over as many connections as it takes.

    Args:
        url: ws:// or wss:// URL of the feed.
        products: product ids, for example BTC-USD.
        silence_seconds: reconnect when no frame came for so long. Heartbeats come once a second
            (FEED.md), so a longer silence is a dead connection.
        sink: takes the frames.
        jitter: draws the wait before a retry, between 0 and the given seconds.

    """

    setting: ClassVar[str]
    """The setting that holds the URL."""
    example: ClassVar[str]
    """What the setting may be."""

    def __init__(
        self,
        url: str,
        products: tuple[str, ...],
        *,
        silence_seconds: float,
        sink: FrameSink,
        jitter: Callable[[float], float] = lambda most: random.uniform(0, most),  # noqa: S311
    ) -> None:
        self.products = products
        """What is asked for."""
        self._url = url
        self._silence_seconds = silence_seconds
        self._sink = sink
        self._jitter = jitter
        self._websocket: BurstConnection | None = None
        self._was_subscribed = False
        self._refused: dict[str, str] = {}

    @abstractmethod
    def _greeting(self) -> list[str]:
        """Return the frames that subscribe to everything on a new connection."""

    @abstractmethod
    def _ask(self, products: tuple[str, ...], action: Action) -> str:
        """Return the frame that subscribes to some products, or unsubscribes from them."""

    @abstractmethod
    def _take(self, frame: bytes) -> bool:
        """Take a frame; return whether there is room for another.

        Raises:
            NothingSubscribedError: the exchange has refused every product.

        """

    async def run(self) -> None:
        """Read until cancelled.

        Raises:
            FatalFeedError: something is wrong that no retry will cure.

        """
        clock = asyncio.get_running_loop().time
        failures = 0
        while True:
            await self._sink.room()
            began = clock()
            try:
                await self._read_one_connection()
            except (OSError, WebSocketException, ImportError, NothingSubscribedError) as error:
                fatal = self._why_give_up(error)
                if fatal is not None:
                    raise FatalFeedError(fatal) from error
                reason = _reason(error)
            if clock() - began >= HEALTHY_SECONDS:
                failures = 0
            # Full jitter: after an outage of the exchange, not all its clients come at once.
            delay = self._jitter(min(FIRST_RETRY_SECONDS * 2**failures, LONGEST_RETRY_SECONDS))
            failures = min(failures + 1, 16)
            log.warning("disconnected", url=self._url, reason=reason, retry_in=round(delay, 2))
            await asyncio.sleep(delay)

    async def follow(self, products: tuple[str, ...]) -> None:
        """Ask for these products from now on, in place of those so far."""
        added = tuple(product for product in products if product not in self.products)
        dropped = tuple(product for product in self.products if product not in products)
        self.products = products
        if self._websocket is None:
            return
        with suppress(ConnectionClosed):  # The next connection asks for them.
            if added:
                await self._websocket.send(self._ask(added, "subscribe"))
            if dropped:
                await self._websocket.send(self._ask(dropped, "unsubscribe"))

    def _why_give_up(self, error: Exception) -> str | None:
        """Decide, here alone, between retry (None) and giving up (what to tell the user).

        Given up is only what the settings cause: a URL or proxy that is none, or, before anything
        has ever worked, a URL where nothing is (404, 410) and products that are all refused. What
        has worked before may work again, so later the same answers are retried. 401 and 403 are
        retried always: these feeds ask for no key, and their gateway answers so to an address that
        connects too often. A redirect to a page (maintenance) is retried as well.
        """
        if isinstance(error, InvalidURI) and error.uri == self._url:
            return (
                f"{self.setting} is {self._url!r}: {error.msg}. Set it to a ws:// or wss:// URL, "
                f"for example {self.example}."
            )
        if isinstance(error, InvalidProxy | ImportError):
            # Of InvalidProxy only msg: the rest is the proxy's URL, which may hold a password.
            # ImportError is how websockets asks for the package that SOCKS needs.
            told = error.msg
            return (
                f"The proxy from the environment can't be used: {told}. Correct HTTPS_PROXY (or "
                "SOCKS_PROXY), or add the exchange to NO_PROXY."
            )
        if self._was_subscribed:
            return None
        if isinstance(error, NothingSubscribedError):
            return (
                f"There is no valid product among {', '.join(self.products)}. The exchange says: "
                f"{error}. Set COINBASE_PRODUCTS to products that are traded, for example "
                "BTC-USD,ETH-USD."
            )
        if isinstance(error, InvalidStatus) and error.response.status_code in {404, 410}:
            return (
                f"There is no feed at {self._url}: it answers HTTP {error.response.status_code}. "
                f"Correct {self.setting}."
            )
        return None

    async def _read_one_connection(self) -> None:
        # Compression off: the frames are small and inflating costs more than it saves.
        # Pings off: silence tells a dead connection, and while the buffer is full nobody reads the
        # answers, so a healthy connection would be closed with its unread frames.
        websocket = await connect(
            self._url,
            compression=None,
            max_size=MAX_FRAME_BYTES,
            open_timeout=OPEN_SECONDS,
            close_timeout=CLOSE_SECONDS,
            ping_interval=None,
            create_connection=BurstConnection,
        )
        # As its factory makes it, which its type does not tell.
        assert isinstance(websocket, BurstConnection)  # noqa: S101
        reason = "stopped"
        self._websocket = websocket
        self._sink.opened(self._url, self.products)
        self._refused.clear()
        log.info("connected", url=self._url)
        try:
            for message in self._greeting():
                await websocket.send(message)
            await self._read(websocket)
        except Exception as error:
            reason = _reason(error)
            raise
        finally:
            self._websocket = None
            self._sink.closed(reason)
            await websocket.close()

    async def _read(self, websocket: BurstConnection) -> None:
        """Hand on frames until the connection ends or is silent.

        Silence is counted in two halves: for a process that stood still (suspended, or starved) the
        first is over at once, and what waits in the socket is heard in the second.
        """
        while await self._read_until_silent(websocket, self._silence_seconds / 2):
            pass
        log.warning("silent", url=self._url, seconds=self._silence_seconds)
        raise TimeoutError(f"no frame for {self._silence_seconds:g} s")

    async def _read_until_silent(self, websocket: BurstConnection, limit: float) -> bool:
        """Hand on frames until none came for `limit` seconds; return whether any came before.

        All that one read of the socket brought is taken in one go, and has come at one time.
        """
        sink, heard = self._sink, False
        clock = asyncio.get_running_loop().time
        take = self._take
        try:
            async with asyncio.timeout(limit) as silence:
                # Moved on some times within the limit, not each time: it costs two timers.
                renew_at = clock() + limit / 20
                while True:
                    frames = await websocket.burst()
                    heard = True
                    sink.arrived()
                    for frame in frames:
                        try:
                            has_room = take(frame)
                        except UnreadableFrameError as error:
                            has_room = sink.unreadable(frame, str(error))
                        if not has_room:
                            silence.reschedule(None)
                            await sink.room()
                            renew_at = 0.0
                    if clock() >= renew_at:
                        now = clock()
                        silence.reschedule(now + limit)
                        renew_at = now + limit / 20
        except TimeoutError:
            return heard

    def _confirm(self, confirmed: frozenset[str] | None) -> None:
        """Take what the exchange says is subscribed."""
        if confirmed is None:
            return
        products = tuple(product for product in self.products if product in confirmed)
        if not products and self.products:
            raise NothingSubscribedError(self._reasons() or "subscribed to nothing")
        self._was_subscribed = True
        self._sink.subscribed(products)
        log.info("subscribed", url=self._url, products=products)

    def _take_refusal(self, told: Refusal) -> None:
        refused = [product for product in self.products if told.names(product)]
        event = "subscription_refused" if refused else "exchange_error"
        log.warning(event, products=refused, message=told.message, reason=told.reason)
        self._refused.update(dict.fromkeys(refused, f"{told.message}: {told.reason}"))
        if self._refused.keys() >= set(self.products):
            raise NothingSubscribedError(self._reasons())

    def _reasons(self) -> str:
        return "; ".join(dict.fromkeys(self._refused.values()))


class ExchangeFeed(Feed):
    """Coinbase Exchange: a frame for each match, and a heartbeat with the newest trade id."""

    setting = "COINBASE_WS_URL"
    example = "wss://ws-feed.exchange.coinbase.com"

    def _greeting(self) -> list[str]:
        return [subscribe(self.products)]

    def _ask(self, products: tuple[str, ...], action: Action) -> str:
        return subscribe(products, action)

    def _take(self, frame: bytes) -> bool:
        message = decode(frame)
        kind = message.kind
        if kind in ("match", "last_match"):
            return self._sink.match(frame, message)
        if kind == "heartbeat":
            self._sink.heartbeat(message)
            return True
        self._sink.other(kind)
        if kind == "subscriptions":
            self._confirm(subscribed_products(frame))
        elif kind == "error":
            self._take_refusal(refusal(frame))
        return True


class AdvancedFeed(Feed):
    """Coinbase Advanced Trade: frames with many trades, numbered one by one per connection."""

    setting = "COINBASE_ADVANCED_WS_URL"
    example = "wss://advanced-trade-ws.coinbase.com"

    _next_sequence = 0

    def _greeting(self) -> list[str]:
        self._next_sequence = 0
        return [subscribe_heartbeats(), subscribe_advanced(self.products)]

    def _ask(self, products: tuple[str, ...], action: Action) -> str:
        return subscribe_advanced(products, action)

    def _take(self, frame: bytes) -> bool:
        message = decode_advanced(frame)
        self._watch_sequence(message.sequence_num)
        channel = message.channel
        if channel == MARKET_TRADES_CHANNEL:
            # Trades come before the acknowledgement, or without it (FEED.md).
            self._was_subscribed = True
            return self._sink.market_trades(frame, message)
        kind = channel if message.type is None else message.type
        self._sink.other(kind)
        if channel == "subscriptions":
            self._confirm(self._as_asked(message.subscribed_products()))
        elif kind == "error":
            self._take_refusal(Refusal(message=message.message))
        return True

    def _as_asked(self, confirmed: frozenset[str] | None) -> frozenset[str] | None:
        """Return the products by the names that they were asked for: X-USDC is X-USD (FEED.md)."""
        if confirmed is None:
            return None
        return confirmed | {name for name in self.products if _as_served(name) in confirmed}

    def _watch_sequence(self, told: object) -> None:
        """Notice dropped frames: a connection's frames are numbered one by one from 0 (FEED.md)."""
        number = trade_number(told)
        if number is None:
            return
        expected, self._next_sequence = self._next_sequence, number + 1
        if number > expected:
            log.warning("frames_dropped", url=self._url, expected=expected, sequence_num=number)
            self._sink.frames_dropped(tuple(map(_as_served, self.products)))


def _as_served(product: str) -> str:
    """Return the product whose trades the Advanced feed sends: X-USD for X-USDC (FEED.md)."""
    if product.endswith("-USDC") and product not in {"USDT-USDC", "EURC-USDC"}:
        return product.removesuffix("C")
    return product


def _reason(error: Exception) -> str:
    """Return why a connection ended as a text that fits into a column."""
    told = str(error) or type(error).__name__
    # PostgreSQL's text holds no NUL, and the exchange's close reason may hold anything.
    return told.replace("\0", "")[:500]
