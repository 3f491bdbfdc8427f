"""Frames of both feeds and the messages in them. Pure, no I/O.

Decoding is lenient: silver judges the values of a trade, so a field may be missing or of any type.
Shapes of the frames: FEED.md, https://docs.cdp.coinbase.com/exchange/websocket-feed/channels and
https://docs.cdp.coinbase.com/coinbase-app/advanced-trade-apis/websocket/websocket-channels.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, Literal, NoReturn

import msgspec

Action = Literal["subscribe", "unsubscribe"]

TRADE_CHANNEL = "matches"
"""Carries every match, and the last one from before the subscription (`last_match`)."""
HEARTBEAT_CHANNEL = "heartbeat"
"""Tells once a second, per product, the newest trade id that the exchange has made."""


MARKET_TRADES_CHANNEL = "market_trades"
"""Carries the trades of the Advanced Trade feed: a snapshot of the last 100, then what follows."""
HEARTBEATS_CHANNEL = "heartbeats"
"""Keeps the other channels of a connection open (FEED.md); it knows of no trade ids."""


class UnreadableFrameError(Exception):
    """A frame is no JSON object; the message says what is wrong with it."""


class Message(msgspec.Struct, gc=False):
    """What the ingester needs to know of a frame; None where the frame doesn't tell."""

    kind: Any = msgspec.field(name="type", default=None)
    """Type of the frame: match, last_match, heartbeat, subscriptions, error, or anything."""
    product_id: Any = None
    trade_id: Any = None
    last_trade_id: Any = None


class Refusal(msgspec.Struct):
    """An error frame: what the exchange refused and why."""

    message: Any = ""
    reason: Any = ""

    def names(self, product_id: str) -> bool:
        """Tell whether the refusal is about this product."""
        words = re.findall(r"[A-Za-z0-9-]+", f"{self.message} {self.reason}")
        return product_id in words


class AdvancedMessage(msgspec.Struct, gc=False):
    """What the ingester needs to know of a frame of the Advanced Trade feed."""

    channel: Any = None
    """market_trades, heartbeats, subscriptions, or anything; None in an error frame."""
    sequence_num: Any = None
    """Counts up by one per connection, over all its channels (FEED.md)."""
    events: Any = None
    type: Any = None
    message: Any = ""

    def trades(self) -> list[tuple[str, int]]:
        """Return product and id of each trade that has both, oldest first."""
        found = []
        events = self.events if isinstance(self.events, list) else []
        for event in events:
            trades = event.get("trades") if isinstance(event, dict) else None
            for trade in trades if isinstance(trades, list) else []:
                if isinstance(trade, dict) and isinstance(trade.get("product_id"), str):
                    trade_id = trade_number(trade.get("trade_id"))
                    if trade_id is not None:
                        found.append((trade["product_id"], trade_id))
        # Newest first is how they come (FEED.md).
        found.reverse()
        return found

    def products(self) -> set[str]:
        """Return the products that the trades name, also those without an id."""
        events = self.events if isinstance(self.events, list) else []
        return {
            trade["product_id"]
            for event in events
            if isinstance(event, dict) and isinstance(event.get("trades"), list)
            for trade in event["trades"]
            if isinstance(trade, dict) and isinstance(trade.get("product_id"), str)
        }

    def subscribed_products(self) -> frozenset[str] | None:
        """Return the products whose trades are subscribed, None if it doesn't say."""
        events = self.events if isinstance(self.events, list) else []
        for event in events:
            subscriptions = event.get("subscriptions") if isinstance(event, dict) else None
            if isinstance(subscriptions, dict):
                products = subscriptions.get(MARKET_TRADES_CHANNEL)
                if isinstance(products, list):
                    return frozenset(filter(lambda name: isinstance(name, str), products))
        return None


class _Channel(msgspec.Struct):
    name: str
    product_ids: list[str] = []


class _Subscriptions(msgspec.Struct):
    channels: list[_Channel] = []


_message = msgspec.json.Decoder(Message)
_subscriptions = msgspec.json.Decoder(_Subscriptions)
_refusal = msgspec.json.Decoder(Refusal)
_advanced = msgspec.json.Decoder(AdvancedMessage)


def decode(frame: bytes) -> Message:
    """Return what a frame says.

    Raises:
        UnreadableFrameError: it is not UTF-8, not JSON, or JSON but no object.

    """
    try:
        return _message.decode(frame)
    except (ValueError, RecursionError):
        # msgspec also refuses what JSON and jsonb allow: a number past a float, a lone surrogate.
        return _decode_unusual(frame)


def decode_advanced(frame: bytes) -> AdvancedMessage:
    """Return what a frame of the Advanced Trade feed says.

    Raises:
        UnreadableFrameError: it is not UTF-8, not JSON, or JSON but no object.

    """
    try:
        return _advanced.decode(frame)
    except (ValueError, RecursionError):
        document = _document(frame)
        # None: nested deeper than Python follows, which jsonb may follow still.
        if document is None:
            return AdvancedMessage(channel=MARKET_TRADES_CHANNEL)
        fields = ("channel", "sequence_num", "events", "type", "message")
        return AdvancedMessage(**{name: document.get(name) for name in fields})


def subscribe(products: Iterable[str], action: Action = "subscribe") -> str:
    """Return the frame that subscribes to the products' trades and heartbeats, or unsubscribes.

    The product ids stand inside the channels: the root form has failed for others (FEED.md).
    """
    product_ids = list(products)
    channels = [
        {"name": name, "product_ids": product_ids} for name in (TRADE_CHANNEL, HEARTBEAT_CHANNEL)
    ]
    return msgspec.json.encode({"type": action, "channels": channels}).decode()


def subscribe_advanced(products: Iterable[str], action: Action = "subscribe") -> str:
    """Return the frame that subscribes to the products' trades on the Advanced Trade feed."""
    message = {
        "type": action,
        "product_ids": list(products),
        "channel": MARKET_TRADES_CHANNEL,
    }
    return msgspec.json.encode(message).decode()


def subscribe_heartbeats() -> str:
    """Return the frame that keeps a connection of the Advanced Trade feed open."""
    return msgspec.json.encode({"type": "subscribe", "channel": HEARTBEATS_CHANNEL}).decode()


def subscribed_products(frame: bytes) -> frozenset[str] | None:
    """Return the products whose trades a subscriptions frame confirms, None if it is malformed."""
    try:
        channels = _subscriptions.decode(frame).channels
    except ValueError:
        return None
    return frozenset(
        product
        for channel in channels
        if channel.name == TRADE_CHANNEL
        for product in channel.product_ids
    )


def refusal(frame: bytes) -> Refusal:
    """Return what an error frame says."""
    try:
        return _refusal.decode(frame)
    except ValueError:
        return Refusal(message=frame[:200].decode(errors="replace"))


def trade_number(value: object) -> int | None:
    """Return a trade id as a number; None where it is none.

    The Exchange feed sends numbers, other interfaces of Coinbase send the same ids as text.
    """
    if type(value) is int:
        return value
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 20:
        return int(value)
    return None


def trades_in(channel: str, frame: bytes) -> list[tuple[str, int]]:
    """Return product and id of each trade in a frame, as far as they can be read."""
    if channel == MARKET_TRADES_CHANNEL:
        return decode_advanced(frame).trades()
    message = decode(frame)
    trade_id = trade_number(message.trade_id)
    if not isinstance(message.product_id, str) or trade_id is None:
        return []
    return [(message.product_id, trade_id)]


def products_in(channel: str, frame: bytes) -> set[str]:
    """Return the products that the trades in a frame name, where it may be several."""
    return decode_advanced(frame).products() if channel == MARKET_TRADES_CHANNEL else set()


def _decode_unusual(frame: bytes) -> Message:
    """Decode by the book what msgspec refused, and say exactly what is wrong."""
    document = _document(frame)
    if document is None:
        return Message(kind="match" if b'match"' in frame else None)
    product_id = document.get("product_id")
    if isinstance(product_id, str) and not _is_encodable(product_id):
        product_id = None
    return Message(
        kind=document.get("type"),
        product_id=product_id,
        trade_id=document.get("trade_id"),
        last_trade_id=document.get("last_trade_id"),
    )


def _document(frame: bytes) -> dict[str, Any] | None:
    """Return the object that a frame is, None for one that is nested deeper than Python follows."""
    try:
        text = frame.decode()
    except UnicodeDecodeError as error:
        raise UnreadableFrameError(f"not UTF-8: {error.reason} at byte {error.start}") from None
    try:
        document = json.loads(text, parse_constant=_refuse, parse_int=str, parse_float=str)
    except RecursionError:
        # Deeper than Python follows: jsonb may follow still, so PostgreSQL is asked.
        if not text.lstrip().startswith("{"):
            raise UnreadableFrameError("JSON but no object, or not JSON: nested too deep") from None
        return None
    except ValueError as error:
        raise UnreadableFrameError(f"not JSON: {error}") from None
    if not isinstance(document, dict):
        raise UnreadableFrameError("JSON but no object")
    return document


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")


def _is_encodable(text: str) -> bool:
    """Tell whether a text has a UTF-8 form; one with a lone surrogate has none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
