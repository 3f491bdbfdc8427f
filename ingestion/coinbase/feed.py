"""One socket to the Exchange feed: subscribe, notice silence, reconnect."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Final, Protocol

import structlog
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import (
    InvalidProxy,
    InvalidStatus,
    InvalidURI,
    WebSocketException,
)

from ingestion.coinbase.wire import (
    Message,
    UnreadableFrameError,
    decode,
    refusal,
    subscribe,
    subscribed_products,
)
from ingestion.errors import FatalFeedError

log = structlog.get_logger(__name__)

MAX_FRAME_BYTES: Final = 16 * 2**20
"""Frames of this feed are under 300 bytes (FEED.md); 16 MiB lets anything odd through to bronze,
and still keeps one frame from filling the memory."""
MAX_QUEUED_FRAMES: Final = 4096
"""One read of a busy socket (256 KiB) brings 900 frames: with fewer places, each read would stop
and restart the socket."""
OPEN_SECONDS: Final = 10.0
CLOSE_SECONDS: Final = 2.0
FIRST_RETRY_SECONDS: Final = 0.5
LONGEST_RETRY_SECONDS: Final = 30.0
HEALTHY_SECONDS: Final = 30.0
"""A connection that lasted this long starts the backoff anew."""


class FrameSink(Protocol):
    """Takes what the feed brings. Only `room` may wait: the others are called for each frame."""

    def opened(self, url: str, products: tuple[str, ...]) -> None:
        """Begin a connection that asks for these products."""

    def subscribed(self, products: tuple[str, ...]) -> None:
        """Note which products the exchange has confirmed."""

    def closed(self, reason: str) -> None:
        """End the connection."""

    def trade(self, frame: bytes, message: Message) -> bool:
        """Take a match or last_match; return whether there is room for another frame."""

    def unreadable(self, frame: bytes, error: str) -> bool:
        """Take a frame that is no JSON object; return whether there is room for another frame."""

    def heartbeat(self, message: Message) -> None:
        """Take a heartbeat."""

    def other(self, kind: object) -> None:
        """Count a frame of any other type."""

    async def room(self) -> None:
        """Wait until there is room for another frame."""


class NothingSubscribedError(Exception):
    """The exchange refused every product; the message holds its reasons."""


class ExchangeFeed:
    """Reads matches and heartbeats of some products for ever, over as many connections as it takes.

    Args:
        url: ws:// or wss:// URL of the Exchange feed.
        products: product ids, for example BTC-USD.
        silence_seconds: reconnect when no frame came for so long. Heartbeats come once a second
            (FEED.md), so a longer silence is a dead connection.
        sink: takes the frames.
        jitter: draws the wait before a retry, between 0 and the given seconds.

    """

    def __init__(
        self,
        url: str,
        products: tuple[str, ...],
        *,
        silence_seconds: float,
        sink: FrameSink,
        jitter: Callable[[float], float] = lambda most: random.uniform(0, most),  # noqa: S311
    ) -> None:
        self._url = url
        self._products = products
        self._silence_seconds = silence_seconds
        self._sink = sink
        self._jitter = jitter
        self._was_subscribed = False
        self._refused: dict[str, str] = {}

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
            log.warning("disconnected", reason=reason, retry_in=round(delay, 2))
            await asyncio.sleep(delay)

    def _why_give_up(self, error: Exception) -> str | None:
        """Decide, here alone, between retry (None) and giving up (what to tell the user).

        Given up is only what the settings cause: a URL or proxy that is none, or, before anything
        has ever worked, a URL where nothing is (404, 410) and products that are all refused. What
        has worked before may work again, so later the same answers are retried. 401 and 403 are
        retried always: this feed asks for no key, and its gateway answers so to an address that
        connects too often. A redirect to a page (maintenance) is retried as well.
        """
        if isinstance(error, InvalidURI) and error.uri == self._url:
            return (
                f"COINBASE_WS_URL is {self._url!r}: {error.msg}. Set it to a ws:// or wss:// URL, "
                "for example wss://ws-feed.exchange.coinbase.com."
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
                f"There is no valid product among {', '.join(self._products)}. The exchange says: "
                f"{error}. Set COINBASE_PRODUCTS to products that are traded, for example "
                "BTC-USD,ETH-USD."
            )
        if isinstance(error, InvalidStatus) and error.response.status_code in {404, 410}:
            return (
                f"There is no feed at {self._url}: it answers HTTP {error.response.status_code}. "
                "Correct COINBASE_WS_URL."
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
            max_queue=MAX_QUEUED_FRAMES,
            open_timeout=OPEN_SECONDS,
            close_timeout=CLOSE_SECONDS,
            ping_interval=None,
        )
        reason = "stopped"
        self._sink.opened(self._url, self._products)
        self._refused.clear()
        log.info("connected", url=self._url)
        try:
            await websocket.send(subscribe(self._products))
            await self._read(websocket)
        except Exception as error:
            reason = _reason(error)
            raise
        finally:
            self._sink.closed(reason)
            await websocket.close()

    async def _read(self, websocket: ClientConnection) -> None:
        """Hand on frames until the connection ends or is silent.

        Silence is counted in two halves: for a process that stood still (suspended, or starved) the
        first is over at once, and what waits in the socket is heard in the second.
        """
        while await self._read_until_silent(websocket, self._silence_seconds / 2):
            pass
        log.warning("silent", seconds=self._silence_seconds)
        raise TimeoutError(f"no frame for {self._silence_seconds:g} s")

    async def _read_until_silent(self, websocket: ClientConnection, limit: float) -> bool:
        """Hand on frames until none came for `limit` seconds; return whether any came before.

        While frames are waiting, `recv` returns without giving way to other tasks, so all that one
        read of the socket brought is taken in one go.
        """
        sink, heard = self._sink, False
        clock = asyncio.get_running_loop().time
        trade, recv = sink.trade, websocket.recv
        try:
            async with asyncio.timeout(limit) as silence:
                # Moved on some times within the limit, not with each frame: it costs two timers.
                renew_at = clock() + limit / 20
                while True:
                    # As bytes: a text frame that is not UTF-8 would else end the connection.
                    frame = await recv(decode=False)
                    heard = has_room = True
                    try:
                        message = decode(frame)
                    except UnreadableFrameError as error:
                        has_room = sink.unreadable(frame, str(error))
                    else:
                        kind = message.kind
                        if kind == "match":
                            has_room = trade(frame, message)
                        else:
                            has_room = self._take(frame, message)
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

    def _take(self, frame: bytes, message: Message) -> bool:
        """Take a frame that is no match; return whether there is room for another."""
        kind = message.kind
        if kind == "last_match":
            return self._sink.trade(frame, message)
        if kind == "heartbeat":
            self._sink.heartbeat(message)
            return True
        self._sink.other(kind)
        if kind == "subscriptions":
            self._take_subscriptions(frame)
        elif kind == "error":
            self._take_refusal(frame)
        return True

    def _take_subscriptions(self, frame: bytes) -> None:
        confirmed = subscribed_products(frame)
        if confirmed is None:
            return
        products = tuple(product for product in self._products if product in confirmed)
        if not products:
            raise NothingSubscribedError(self._reasons() or "subscribed to nothing")
        self._was_subscribed = True
        self._sink.subscribed(products)
        log.info("subscribed", products=products)

    def _take_refusal(self, frame: bytes) -> None:
        told = refusal(frame)
        refused = [product for product in self._products if told.names(product)]
        event = "subscription_refused" if refused else "exchange_error"
        log.warning(event, products=refused, message=told.message, reason=told.reason)
        self._refused.update(dict.fromkeys(refused, f"{told.message}: {told.reason}"))
        if len(self._refused) == len(self._products):
            raise NothingSubscribedError(self._reasons())

    def _reasons(self) -> str:
        return "; ".join(dict.fromkeys(self._refused.values()))


def _reason(error: Exception) -> str:
    """Return why a connection ended as a text that fits into a column."""
    told = str(error) or type(error).__name__
    # PostgreSQL's text holds no NUL, and the exchange's close reason may hold anything.
    return told.replace("\0", "")[:500]
