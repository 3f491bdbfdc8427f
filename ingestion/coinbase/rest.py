"""Coinbase Exchange over REST: trades, products and candles, at most 10 requests a second.

Paths, limits and shapes: FEED.md, and https://docs.cdp.coinbase.com/exchange/rest-api.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from datetime import datetime
from typing import Final, NamedTuple, Self, TypeVar

import httpx
import msgspec
import structlog

from ingestion.errors import FatalRestError, IngestionError

log = structlog.get_logger(__name__)

REQUESTS_PER_SECOND: Final = 10
"""What Coinbase allows to an address (FEED.md); a burst of 15 is allowed as well, and not used."""
PAGE_TRADES: Final = 1000
PAGE_CANDLES: Final = 300
TIMEOUT_SECONDS: Final = 10.0
FIRST_RETRY_SECONDS: Final = 0.5
LONGEST_RETRY_SECONDS: Final = 30.0
LONGEST_RETRY_AFTER_SECONDS: Final = 300.0
_TOO_MANY_REQUESTS: Final = 429
_PASSING: Final = frozenset({401, 403, 408, 425, _TOO_MANY_REQUESTS})
"""Answers that a retry may cure. 401 and 403 are a gateway's: this interface asks for no key."""

_T = TypeVar("_T")


class RestRefusedError(IngestionError):
    """The exchange refuses the request, and will refuse it again; the message says what it says."""


class UnreadablePageError(Exception):
    """An answer holds trades or products, and none of them can be read."""


class RestTrade(NamedTuple):
    """One trade as REST tells it."""

    trade_id: int
    time: datetime
    payload: bytes
    """The JSON object as it came; it has no product_id (FEED.md)."""


class Product(msgspec.Struct, frozen=True):
    """One product of the exchange."""

    id: str
    status: str = ""
    trading_disabled: bool = False

    @property
    def is_traded(self) -> bool:
        """Whether trades of it can come."""
        return self.status == "online" and not self.trading_disabled


class _TradeFields(msgspec.Struct):
    trade_id: int
    time: datetime


_page = msgspec.json.Decoder(list[msgspec.Raw])
_trade = msgspec.json.Decoder(_TradeFields)
_product = msgspec.json.Decoder(Product)


class RestClient:
    """Asks the exchange, again and again until it answers.

    What may pass (no connection, time-outs, 429, 5xx, an answer that is cut off) is tried again for
    ever, later each time; 429 makes all requests wait for as long as Retry-After says.

    Args:
        url: http:// or https:// URL, for example https://api.exchange.coinbase.com.
        requests_per_second: no more requests are begun in a second.
        jitter: draws the wait before a retry, between 0 and the given seconds.

    Raises:
        FatalRestError: the proxy from the environment can't be used.

    """

    def __init__(
        self,
        url: str,
        *,
        requests_per_second: float = REQUESTS_PER_SECOND,
        jitter: Callable[[float], float] = lambda most: random.uniform(0, most),  # noqa: S311
    ) -> None:
        self.url = url.rstrip("/")
        self._jitter = jitter
        self._interval = 1 / requests_per_second
        self._next_request_at = 0.0
        headers = {"User-Agent": "medallion", "Accept": "application/json"}
        try:
            self._http = httpx.AsyncClient(timeout=TIMEOUT_SECONDS, headers=headers)
        except (ImportError, ValueError, httpx.InvalidURL) as error:
            # ImportError is how httpx asks for the package that SOCKS needs.
            raise FatalRestError(
                f"The proxy from the environment can't be used: {error}. Correct HTTPS_PROXY (or "
                "ALL_PROXY), or add the exchange to NO_PROXY."
            ) from None
        self.requests = 0
        """Requests made."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def trades(
        self, product_id: str, after: int | None = None, limit: int = PAGE_TRADES
    ) -> list[RestTrade]:
        """Return the newest trades with an id below `after`, newest first; at most 1000.

        Raises:
            RestRefusedError: the product is unknown, or the request makes no sense.

        """
        query = {"limit": str(limit)} | ({} if after is None else {"after": str(after)})
        return await self._get(f"/products/{product_id}/trades", query, _read_trades)

    async def products(self) -> list[Product]:
        """Return all products, delisted ones included.

        Raises:
            RestRefusedError: the exchange doesn't tell.

        """
        return await self._get("/products", {}, _read_products)

    async def catalogue(self) -> list[bytes]:
        """Return all products as they came, those that can't be read included.

        Raises:
            RestRefusedError: the exchange doesn't tell.

        """
        return await self._get("/products", {}, _read_catalogue)

    async def candles(
        self, product_id: str, granularity: int, first: datetime, last: datetime
    ) -> bytes:
        """Return the candles whose buckets begin from `first` to `last`, as the array that came.

        Each is `[time, low, high, open, close, volume]`; one without trades is left out (FEED.md).
        `granularity` is in seconds; of more than 300 buckets the exchange tells nothing.

        Raises:
            RestRefusedError: the product is unknown, or the request makes no sense.

        """
        query = {
            "granularity": str(granularity),
            "start": f"{first:%Y-%m-%dT%H:%M:%SZ}",
            "end": f"{last:%Y-%m-%dT%H:%M:%SZ}",
        }
        return await self._get(f"/products/{product_id}/candles", query, _read_candles)

    async def _get(self, path: str, query: dict[str, str], read: Callable[[bytes], _T]) -> _T:
        failures = 0
        while True:
            await self._wait_for_turn()
            self.requests += 1
            try:
                answer = await self._http.get(f"{self.url}{path}", params=query)
                self._refuse(answer, path)
                if answer.is_success:
                    return read(answer.content)
                reason = f"HTTP {answer.status_code}"
            except httpx.InvalidURL as error:
                raise RestRefusedError(f"{self.url}{path} is no URL: {error}") from None
            except (httpx.RequestError, msgspec.MsgspecError, UnreadablePageError) as error:
                answer = None
                reason = str(error) or type(error).__name__
            delay = self._jitter(min(FIRST_RETRY_SECONDS * 2**failures, LONGEST_RETRY_SECONDS))
            failures = min(failures + 1, 16)
            if answer is not None and answer.status_code == _TOO_MANY_REQUESTS:
                delay = max(delay, _retry_after(answer))
                # All requests wait, for the limit is on the address.
                self._next_request_at = max(self._next_request_at, _now() + delay)
            log.warning("rest_retry", path=path, reason=reason, retry_in=round(delay, 2))
            await asyncio.sleep(delay)

    async def _wait_for_turn(self) -> None:
        """Wait until a request may begin: evenly spaced, so that bursts are left to others."""
        while (wait := self._next_request_at - _now()) > 0:  # noqa: ASYNC110  (429 prolongs it)
            await asyncio.sleep(wait)
        self._next_request_at = max(self._next_request_at, _now()) + self._interval

    def _refuse(self, answer: httpx.Response, path: str) -> None:
        """Raise what a retry won't cure; a redirect to a page (maintenance) is tried again."""
        if not answer.is_client_error or answer.status_code in _PASSING:
            return
        raise RestRefusedError(
            f"{self.url}{path} answers HTTP {answer.status_code}: {answer.text[:200]}"
        )


def _now() -> float:
    return asyncio.get_running_loop().time()


def _retry_after(answer: httpx.Response) -> float:
    """Return the seconds that an answer asks to wait; 0 where it says nothing, or a date."""
    told = answer.headers.get("Retry-After", "")
    return min(float(told), LONGEST_RETRY_AFTER_SECONDS) if told.isdecimal() else 0.0


def _read_candles(body: bytes) -> bytes:
    _page.decode(body)
    return body


def _read_trades(body: bytes) -> list[RestTrade]:
    read = _read_each(body, _trade, "trades")
    return [RestTrade(fields.trade_id, fields.time, payload) for fields, payload in read]


def _read_products(body: bytes) -> list[Product]:
    return [product for product, _ in _read_each(body, _product, "products")]


def _read_catalogue(body: bytes) -> list[bytes]:
    if not _read_products(body):
        # Taken for true, it would delist them all.
        raise UnreadablePageError("it names no product")
    return [bytes(payload) for payload in _page.decode(body)]


def _read_each(body: bytes, decoder: msgspec.json.Decoder[_T], what: str) -> list[tuple[_T, bytes]]:
    """Read a list, and leave out what can't be read of it, unless that is everything."""
    read, unreadable = [], []
    for payload in _page.decode(body):
        try:
            read.append((decoder.decode(payload), bytes(payload)))
        # What is no UTF-8 raises an error of its own.
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            unreadable.append(f"{error}: {bytes(payload)[:100]!r}")
    if unreadable:
        if not read:
            raise UnreadablePageError(f"none of its {what} can be read: {unreadable[0]}")
        # Trades stay missing: the exchange is asked for them again, and in the end that is told.
        log.warning(f"rest_{what}_unreadable", **{what: len(unreadable)}, first=unreadable[0])
    return read
