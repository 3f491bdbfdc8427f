"""The Advanced Trade feed: many trades a frame, and one count of frames for each connection.

Recorded frames carry one product each, and those of a product come a multiple of 0.1 s apart: a
frame holds what a product traded in a tenth of a second, newest first.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from itertools import groupby, islice
from typing import Literal, NamedTuple, Protocol

from websockets.asyncio.server import ServerConnection

from simulator.faults import FaultInjector, Faults, Outgoing
from simulator.frames import (
    AdvancedChannel,
    advanced_frame,
    error_frame,
    heartbeats_event,
    market_trades_event,
    subscriptions_event,
)
from simulator.market import SECOND, Market
from simulator.server import (
    Feed,
    Limits,
    Reader,
    RefusedError,
    Spawn,
    product_ids_in,
    read_fields,
)

_TRADES: AdvancedChannel = "market_trades"
_HEARTBEATS: AdvancedChannel = "heartbeats"
_OWN_USDC = {"USDT-USDC", "EURC-USDC"}
_WINDOW = SECOND // 10
_SNAPSHOT_TRADES = 100
_NANOSECONDS = 1_000


@dataclass(frozen=True)
class AdvancedMessage:
    """A subscribe or unsubscribe message, for one channel."""

    type: Literal["subscribe", "unsubscribe"]
    channel: AdvancedChannel
    product_ids: tuple[str, ...]


def parse_advanced_message(message: str | bytes) -> AdvancedMessage:
    """Read a client's message; `heartbeats` needs no product ids and heeds none.

    Raises:
        RefusedError: If it is none Coinbase would accept; the wording is ours.
    """
    fields = read_fields(message)
    failed = f"Failed to {fields['type']}"
    channel = fields.get("channel")
    if channel == _HEARTBEATS:
        # It stands in its own list, as in Coinbase's acknowledgement.
        return AdvancedMessage(fields["type"], _HEARTBEATS, (_HEARTBEATS,))
    if channel != _TRADES:
        raise RefusedError(failed, f"{channel} is not a channel of this simulator")
    product_ids = product_ids_in(fields)
    if not product_ids and fields["type"] == "subscribe":
        raise RefusedError(failed, f"You need to specify at least one product ID for {channel}")
    served = tuple(dict.fromkeys(map(served_product, product_ids)))
    return AdvancedMessage(fields["type"], _TRADES, served)


def served_product(product_id: str) -> str:
    """Return the product whose data a subscription yields: the dollar's for most USDC pairs."""
    base, _, quote = product_id.rpartition("-")
    return f"{base}-USD" if quote == "USDC" and product_id not in _OWN_USDC else product_id


class TradeSource(Protocol):
    """What the Advanced Trade feed serves from: a market, its clock, and when the tape stops."""

    market: Market
    market_time: int
    end: int | None

    def refusal(self, product_id: str) -> str | None:
        """Return why a product can't be subscribed to, or None if it can."""

    def offered(self, product_id: str, first_id: int) -> None:
        """Note that a client has a product's trades from this id on."""


@dataclass(eq=False, kw_only=True)
class AdvancedReader(Reader):
    """A client's socket, the number of its next frame, and what goes wrong on its way.

    Its frames are numbered when they are made: a dropped one leaves a gap, a late or repeated one
    comes with its old number.
    """

    injector: FaultInjector
    next_number: int = 0


class Batch(NamedTuple):
    """What a product traded in one window, ready to be numbered."""

    product_id: str
    newest_id: int
    time: int
    event: str


class AdvancedFeed(Feed[AdvancedReader]):
    """Coinbase's Advanced Trade feed."""

    def __init__(self, limits: Limits, spawn: Spawn, source: TradeSource, faults: Faults) -> None:
        super().__init__(limits, spawn)
        self._source = source
        self._faults = faults
        self._beats = 0

    def welcome(self, connection: ServerConnection) -> AdvancedReader:
        """Begin a count of frames at 0, with faults other than those of the Exchange feed."""
        return AdvancedReader(connection, injector=FaultInjector(self._faults, "advanced/"))

    def obey(self, reader: AdvancedReader, message: str | bytes) -> None:
        """Subscribe or unsubscribe; data may come ahead of the acknowledgement."""
        asked_for = parse_advanced_message(message)
        channel = asked_for.channel
        if asked_for.type == "unsubscribe":
            products = reader.products(channel)
            for product_id in asked_for.product_ids or tuple(products):
                products.pop(product_id, None)
        elif channel == _HEARTBEATS:
            reader.channels[channel] = dict.fromkeys(asked_for.product_ids)
        else:
            for product_id in asked_for.product_ids:
                reason = self._source.refusal(product_id)
                if reason:
                    self.send(reader, [error_frame("Failed to subscribe", reason)])
                else:
                    reader.channels.setdefault(channel, {})[product_id] = None
                    self._send_snapshot(reader, product_id)
        if reader.channels or asked_for.type == "unsubscribe":
            listed = {name: products for name, products in reader.channels.items() if products}
            self.send(reader, [self._frame(reader, "subscriptions", subscriptions_event(listed))])

    def beat(self) -> None:
        """Send heartbeats where they are subscribed to, and end connections that hear nothing."""
        now, interval = self._source.market_time, self.limits.heartbeat_interval
        running = round(self._beats * interval * SECOND) * _NANOSECONDS
        event = heartbeats_event(now * _NANOSECONDS, running, self._beats)
        self._beats += 1
        silent_since = asyncio.get_running_loop().time() - self.limits.silence_timeout
        for reader in filter(lambda reader: reader.open, self.readers):
            if reader.products(_HEARTBEATS):
                self.send(reader, [self._frame(reader, _HEARTBEATS, event)])
            elif reader.written_at < silent_since and not self.silent:
                self._spawn(reader.connection.close())

    def publish(self, after: int, until: int) -> None:
        """Send the trades of the windows that end after one market time and up to another."""
        batches = [
            batch
            for product_id in self.wanted(_TRADES)
            for batch in self._batches(product_id, after, until)
        ]
        batches.sort(key=lambda batch: batch.time)
        for reader in filter(lambda reader: reader.open, self.readers):
            products = reader.products(_TRADES)
            own = (batch for batch in batches if batch.product_id in products)
            frames = (self._outgoing(reader, batch) for batch in own)
            self.send_counted(reader, reader.injector.apply(frames))

    def flush(self) -> None:
        """Send what was held back."""
        for reader in filter(lambda reader: reader.open, self.readers):
            self.send_counted(reader, reader.injector.flush())

    def _batches(self, product_id: str, after: int, until: int) -> Iterator[Batch]:
        """Yield a product's trades by the windows in which they were made."""
        low, high = self._window_end(product_id, after), self._window_end(product_id, until)
        if low == high:
            return
        phase = _phase(product_id)
        trades = self._source.market.between([product_id], low, high)
        for window, made in groupby(trades, lambda trade: -((phase - trade.time) // _WINDOW)):
            newest_first = list(made)[::-1]
            time = min(window * _WINDOW + phase, high)
            event = market_trades_event("update", newest_first)
            yield Batch(product_id, newest_first[0].trade_id, time, event)

    def _window_end(self, product_id: str, at: int) -> int:
        """Return when a product's last window ended; the end of the tape cuts one short."""
        return at if at == self._source.end else at - (at - _phase(product_id)) % _WINDOW

    def _send_snapshot(self, reader: AdvancedReader, product_id: str) -> None:
        """Send the last trades that have been published."""
        tape = self._source.market[product_id]
        newest_id = tape.last_trade_id(self._window_end(product_id, self._source.market_time))
        trades = list(islice(tape.newest_first(newest_id), _SNAPSHOT_TRADES))
        if self.silent:
            return
        self._source.offered(product_id, trades[-1].trade_id if trades else 1)
        if trades:
            event = market_trades_event("snapshot", trades)
            self.send(reader, [self._frame(reader, _TRADES, event)])
            self.counts["snapshot"] += 1

    def _outgoing(self, reader: AdvancedReader, batch: Batch) -> Outgoing:
        payload = self._frame(reader, _TRADES, batch.event, batch.time)
        return Outgoing(batch.product_id, batch.newest_id, batch.time, payload)

    def _frame(
        self,
        reader: AdvancedReader,
        channel: AdvancedChannel | Literal["subscriptions"],
        event: str,
        at: int | None = None,
    ) -> bytes:
        """Return a frame with the reader's next number, made now or at a market time."""
        number = reader.next_number
        reader.next_number += 1
        # Finer than market time is, for readers have to bear nine digits.
        time = (self._source.market_time if at is None else at) * _NANOSECONDS + number * 397 % 1000
        return advanced_frame(channel, time, number, event)


def _phase(product_id: str) -> int:
    """Return when the windows of a product end, after the full tenth of a second."""
    digest = blake2b(product_id.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") % _WINDOW
