"""The market: every trade is a pure function of the seed, the product and the trade id.

Nothing is stored. Ids fall into blocks of 64; a block's place in time comes from a closed-form
count of trades, and one hash of (seed, product, block) gives all that is random inside it. So a
second run, started days later with the same seed, goes on with the same market.

Units throughout: market time is in microseconds since 1970-01-01 UTC; prices and sizes are
integers of 1e-8, the finest increment Coinbase uses.
"""

import hashlib
import math
import struct
from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import count, takewhile
from typing import Literal

import msgspec

Side = Literal["buy", "sell"]

UNITS = 10**8
"""How many units make one of a currency."""

SECOND = 1_000_000
DAY = 86_400 * SECOND


def micros(at: datetime) -> int:
    """Return an aware datetime as market time.

    Raises:
        ValueError: If the datetime has no time zone.
    """
    if at.tzinfo is None:
        raise ValueError(f"{at.isoformat()} has no time zone; give market times as UTC.")
    since = at - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * SECOND + since.microseconds


EPOCH = micros(datetime(2026, 9, 30, tzinfo=UTC))
"""When each product stands at its `first_trade_id`; earlier trades have lower ids."""


@dataclass(frozen=True)
class Product:
    """A product of the exchange and the character of its trading.

    `price` is the level at the epoch and `typical_value` roughly the median value of a trade,
    both in quote currency; the increments and `max_size` are in units of 1e-8. After
    `delisted_at`, a market time, it makes no more trades.
    """

    id: str
    price: float
    quote_increment: int
    base_increment: int
    trades_per_day: int
    first_trade_id: int
    typical_value: float
    max_size: int
    delisted_at: int | None = None

    @property
    def online(self) -> bool:
        """Whether it still trades."""
        return self.delisted_at is None

    @property
    def base_currency(self) -> str:
        """The currency that is bought and sold."""
        return self.id.partition("-")[0]

    @property
    def quote_currency(self) -> str:
        """The currency that prices are given in."""
        return self.id.partition("-")[2]


_CATALOGUE = (
    # id, price, quote increment, base increment, trades/day, id at the epoch, value, largest size
    Product("BTC-USD", 83_000, UNITS // 100, 1, 130_000, 1_100_236_000, 25, 40 * UNITS),
    Product("ETH-USD", 2_670, UNITS // 100, 1, 75_000, 846_147_000, 20, 900 * UNITS),
    Product("SOL-USD", 142, UNITS // 100, 1, 40_000, 334_900_000, 15, 9_000 * UNITS),
    Product("XRP-USD", 2.1, 10_000, 100, 32_000, 251_300_000, 15, 400_000 * UNITS),
    Product("DOGE-USD", 0.17, 1_000, UNITS // 10, 18_000, 172_800_000, 10, 3_000_000 * UNITS),
    Product("PEPE-USD", 0.000004, 1, UNITS, 12_000, 61_400_000, 10, 20_000_000_000 * UNITS),
    Product("ADA-USD", 0.61, 10_000, 1, 10_000, 118_200_000, 10, 300_000 * UNITS),
    Product("LINK-USD", 13.4, UNITS // 1000, UNITS // 100, 9_000, 74_600_000, 12, 20_000 * UNITS),
    # Cheaper than it has ever been, on purpose: a few ticks of 1e-8, so one tick is 10 %.
    Product("BONK-USD", 0.00000009, 1, UNITS, 8_000, 31_100_000, 5, 20_000_000_000 * UNITS),
    Product("AVAX-USD", 21.3, UNITS // 100, 1, 6_000, 52_700_000, 12, 10_000 * UNITS),
    Product("LTC-USD", 88, UNITS // 100, 1, 7_000, 129_400_000, 12, 4_000 * UNITS),
    Product("BTC-EUR", 71_000, UNITS // 100, 1, 9_000, 97_500_000, 20, 20 * UNITS),
    Product("YFI-USD", 5_200, UNITS // 100, 100, 500, 9_800_000, 20, 20 * UNITS, EPOCH),
)

PRODUCTS = {product.id: product for product in _CATALOGUE}
"""All products of the simulated exchange; YFI-USD was delisted at the epoch."""

DEFAULT_PRODUCT_IDS = tuple(PRODUCTS)[:10]
"""Ten products that make about 340,000 trades in any 24 hours."""


class Trade(msgspec.Struct, frozen=True, gc=False):
    """One trade. `side` is the maker's side, as Coinbase documents it.

    `size_padded` marks the few trades whose size the socket sends with its trailing zeros, as in
    one of the 63 recorded frames.
    """

    product_id: str
    trade_id: int
    maker_order_id: str
    taker_order_id: str
    side: Side
    size: int
    price: int
    sequence: int
    time: int
    size_padded: bool = False


@dataclass(frozen=True)
class Candle:
    """One bucket of trades; `time` is its beginning in seconds, the rest in units of 1e-8."""

    time: int
    low: int
    high: int
    open: int
    close: int
    volume: int


def candle_of(time: int, trades: Sequence[Trade]) -> Candle:
    """Return the candle of a bucket's trades, which are in id order and at least one.

    `time` is the bucket's beginning in seconds since 1970.
    """
    prices = [trade.price for trade in trades]
    volume = sum(trade.size for trade in trades)
    return Candle(time, min(prices), max(prices), prices[0], prices[-1], volume)


def spoiled(candle: Candle) -> Candle:
    """Return a candle that is wrong by as little as an amount can be: one unit."""
    return replace(candle, close=candle.close + 1, volume=candle.volume + 1)


_BLOCK = 64
_SEQUENCE_PER_TRADE = 124  # recorded: sequence / trade_id is 122 for ETH-USD and 125 for BTC-USD
_SEQUENCE_SPREAD = _BLOCK * (_SEQUENCE_PER_TRADE - 2)
_SEASON = 0.5  # the busiest hour has (1 + 0.5) / (1 - 0.5) = 3 times the trades of the quietest
_DAILY_VOLATILITY = 0.012
_NOISE = 3e-7
_CACHED_BLOCKS = 8

# How many makers a taker order meets, by a random byte: mostly one, at times up to twelve.
_SWEEPS = (*([1] * 160), *([2] * 48), *([3] * 20), *([4] * 12), *range(5, 13), *range(5, 13))


def _order_id(digits: str) -> str:
    """Shape 32 hexadecimal digits as a version 4 UUID."""
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"


class Tape:
    """The trades of one product, from its first id to the end of time, or to its delisting.

    `absent` ids were never given to a trade: the exchange itself has nothing under them.
    """

    def __init__(self, seed: int, product: Product, absent: Collection[int] = ()) -> None:
        self.product = product
        self._absent = frozenset(absent)
        self._key = f"{seed}/{product.id}/".encode()
        phases = struct.unpack("<32I", hashlib.shake_128(self._key).digest(128))
        angles = [phase / 2**32 * math.tau for phase in phases]
        self._season_phase = 2.5 + angles[0] / 12
        # Waves from 60 days down to half a minute, each as high as the root of its length:
        # the sum looks like a random walk at every scale.
        periods = takewhile(lambda days: days > 0.5 / 1440, (60 / 2.2**n for n in count()))
        self._waves = [
            (math.tau / days, angle, _DAILY_VOLATILITY * math.sqrt(days))
            for days, angle in zip(periods, angles[1:], strict=False)
        ]
        self._level = product.price * UNITS / math.exp(self._walk(EPOCH))
        self._blocks: dict[int, list[Trade]] = {}

    def last_trade_id(self, at: int) -> int:
        """Return the id of the newest trade made at or before a market time; 0 if there is none."""
        delisted_at = self.product.delisted_at
        last_id = self._last_id(at if delisted_at is None else min(at, delisted_at))
        while last_id in self._absent:
            last_id -= 1
        return max(last_id, 0)

    def trade(self, trade_id: int) -> Trade:
        """Return the trade with this id, past or future.

        Raises:
            ValueError: If the id is below 1, or absent.
        """
        if trade_id < 1:
            raise ValueError(f"Trade ids begin at 1, not {trade_id}.")
        if trade_id in self._absent:
            raise ValueError(f"{self.product.id} has no trade {trade_id}: its id is absent.")
        number, offset = divmod(trade_id, _BLOCK)
        return self._block(number)[offset]

    def trades(self, first_id: int, last_id: int) -> Iterator[Trade]:
        """Yield the trades from `first_id` to `last_id`, both included, in id order."""
        first_id = max(first_id, 1)
        for number in range(first_id // _BLOCK, last_id // _BLOCK + 1):
            yield from self._part(number, first_id, last_id)

    def newest_first(self, last_id: int, first_id: int = 1) -> Iterator[Trade]:
        """Yield the same trades from `last_id` down to `first_id`."""
        first_id = max(first_id, 1)
        for number in range(last_id // _BLOCK, first_id // _BLOCK - 1, -1):
            yield from reversed(self._part(number, first_id, last_id))

    def count(self, first_id: int, last_id: int) -> int:
        """Count the trades from `first_id` to `last_id`, both included and at least 1."""
        absent = sum(first_id <= trade_id <= last_id for trade_id in self._absent)
        return last_id - first_id + 1 - absent

    def sequence(self, at: int) -> int:
        """Return the sequence number of a heartbeat at a market time, between those of trades."""
        number = self._block_at(at)
        start, end = self._edge(number), self._edge(number + 1)
        index = self._last_id(at) - number * _BLOCK
        elapsed = (at - start) * _SEQUENCE_SPREAD // (end - start)
        return number * _BLOCK * _SEQUENCE_PER_TRADE + elapsed + 2 * index + 1

    def made(self, at: int) -> float:
        """Count the ids since the epoch: the integral of the seasonal rate, strictly rising."""
        days = (at - EPOCH) / DAY
        swing = math.sin(math.tau * days - self._season_phase) + math.sin(self._season_phase)
        return self.product.trades_per_day * (days + _SEASON * swing / math.tau)

    def _edge(self, number: int) -> int:
        """Return the market time at which a block begins: `made` inverted by Newton steps."""
        wanted = (number * _BLOCK - self.product.first_trade_id) / self.product.trades_per_day
        phase, offset = self._season_phase, math.sin(self._season_phase)
        days = wanted
        for _ in range(50):
            angle = math.tau * days - phase
            excess = days + _SEASON * (math.sin(angle) + offset) / math.tau - wanted
            step = excess / (1 + _SEASON * math.cos(angle))
            days -= step
            if abs(step) < 1e-9:  # quadratic: the next step would be far below a microsecond
                break
        return EPOCH + round(days * DAY)

    def _block_at(self, at: int) -> int:
        number = (self.product.first_trade_id + math.floor(self.made(at))) // _BLOCK
        if self._edge(number) > at:  # a microsecond's rounding at the edge
            return number - 1
        return number + 1 if self._edge(number + 1) <= at else number

    def _last_id(self, at: int) -> int:
        """Return the last id at a market time, were none absent and the product never delisted."""
        number = self._block_at(at)
        made = bisect_right(self._block(number), at, key=lambda trade: trade.time)
        return number * _BLOCK + made - 1

    def _part(self, number: int, first_id: int, last_id: int) -> list[Trade]:
        """Return a block's trades between two ids."""
        low = number * _BLOCK
        part = self._block(number)[max(first_id - low, 0) : max(last_id - low + 1, 0)]
        if self._absent:
            return [trade for trade in part if trade.trade_id not in self._absent]
        return part

    def _walk(self, at: int) -> float:
        """Return the logarithm of the fair price, up to a constant."""
        days = (at - EPOCH) / DAY
        return sum(height * math.sin(speed * days + angle) for speed, angle, height in self._waves)

    def _block(self, number: int) -> list[Trade]:
        block = self._blocks.get(number)
        if block is None:
            block = self._make_block(number)
            while len(self._blocks) >= _CACHED_BLOCKS:
                del self._blocks[next(iter(self._blocks))]
            self._blocks[number] = block
        return block

    def _make_block(self, number: int) -> list[Trade]:
        product, tick = self.product, self.product.quote_increment
        start, end = self._edge(number), self._edge(number + 1)
        price, next_price = (self._level * math.exp(self._walk(at)) for at in (start, end))
        key = self._key + number.to_bytes(8, "little", signed=True)
        digest = hashlib.shake_128(key).digest(_BLOCK * 44)
        luck = struct.unpack_from(f"<{3 * _BLOCK}I", digest)
        digits = digest[12 * _BLOCK :].hex()

        sweeps = _sweep_lengths(luck[2 * _BLOCK :])
        moments = sorted(luck[_BLOCK : _BLOCK + len(sweeps)])
        side: Side = "buy" if luck[0] & 1 else "sell"
        trades: list[Trade] = []
        for sweep, moment in zip(sweeps, moments, strict=True):
            first = len(trades)
            chance = luck[2 * _BLOCK + first] >> 8
            mid = price + (next_price - price) * moment / 2**32
            mid *= 1 + _NOISE * ((chance & 255) - 128)
            same_side = (chance >> 8 & 255) < 170
            if not same_side:
                side = "sell" if side == "buy" else "buy"
            up = side == "sell"
            ticks = max(int(mid / tick) + up, 1)
            maker = ""
            if same_side and trades and chance >> 16 < 100:  # the last maker had something left
                ticks, maker = trades[-1].price // tick, trades[-1].maker_order_id
            stride = max(1, ticks // 2_000_000)
            farthest = ticks + max(1, ticks // 2_000) if up else max(1, ticks - ticks // 2_000)
            time = start + (moment * (end - start) >> 32)
            sequence = number * _BLOCK * _SEQUENCE_PER_TRADE + (moment * _SEQUENCE_SPREAD >> 32)
            taker = _order_id(digits[64 * first + 32 : 64 * first + 64])
            for index in range(first, first + sweep):
                roll = luck[index]
                if index > first and roll & 3 == 0:
                    step = stride * (1 + (roll >> 2 & 3))
                    ticks = min(ticks + step, farthest) if up else max(ticks - step, farthest)
                if index > first or not maker:
                    maker = _order_id(digits[64 * index : 64 * index + 32])
                trades.append(
                    Trade(
                        product.id,
                        number * _BLOCK + index,
                        maker,
                        taker,
                        side,
                        _size(product, ticks * tick, roll),
                        ticks * tick,
                        sequence + 2 * index,
                        time,
                        roll >> 4 & 63 == 0,
                    )
                )
        return trades


def _sweep_lengths(luck: Sequence[int]) -> list[int]:
    """Divide a block's ids into taker orders."""
    lengths: list[int] = []
    made = 0
    while made < _BLOCK:
        lengths.append(min(_SWEEPS[luck[made] & 255], _BLOCK - made))
        made += lengths[-1]
    return lengths


def _size(product: Product, price: int, roll: int) -> int:
    """Return a heavy-tailed size (Pareto, exponent 0.8), one in 16 of them a round number."""
    value = product.typical_value * 0.42 * ((roll | 1) / 2**32) ** -1.25
    size = int(value * UNITS / price * UNITS)
    if size > product.max_size:
        size = product.max_size * (65_536 + (roll & 65_535)) // 131_072
    if roll >> 10 & 15 == 0:
        size -= size % 10 ** (len(str(size)) - 1)
    return max(size - size % product.base_increment, product.base_increment)


class Market:
    """The tapes of several products under one seed; `absent` ids, by product, have no trade."""

    def __init__(
        self,
        seed: int = 0,
        products: Sequence[Product] = _CATALOGUE,
        absent: Mapping[str, Collection[int]] | None = None,
    ) -> None:
        self._seed = seed
        self._absent = absent or {}
        self.products: dict[str, Product] = {}
        self._tapes: dict[str, Tape] = {}
        for product in products:
            self._add(product)

    def list_product(self, product: Product, at: int) -> None:
        """Open trading of a new product at a market time, with trade id 1.

        Raises:
            ValueError: If there is such a product already.
        """
        if product.id in self._tapes:
            raise ValueError(f"There is a product {product.id} already.")
        made = Tape(self._seed, product).made(at)
        self._add(replace(product, first_trade_id=-math.ceil(made)))

    def delist(self, product_id: str, at: int) -> None:
        """End trading of a product at a market time; what it traded before stays."""
        product = replace(self.products[product_id], delisted_at=at)
        self.products[product_id] = self._tapes[product_id].product = product

    def _add(self, product: Product) -> None:
        absent = self._absent.get(product.id, ())
        self.products[product.id] = product
        self._tapes[product.id] = Tape(self._seed, product, absent)

    def __getitem__(self, product_id: str) -> Tape:
        """Return the tape of a product; a KeyError if there is no such product."""
        return self._tapes[product_id]

    def between(self, product_ids: Sequence[str], after: int, until: int) -> list[Trade]:
        """Return the trades with `after` < time <= `until`, in time order over the products.

        Trades of one product stay in id order.
        """
        trades: list[Trade] = []
        for product_id in product_ids:
            tape = self._tapes[product_id]
            trades += tape.trades(tape.last_trade_id(after) + 1, tape.last_trade_id(until))
        if len(product_ids) > 1:
            trades.sort(key=lambda trade: trade.time)
        return trades
