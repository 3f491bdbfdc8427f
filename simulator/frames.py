"""The text Coinbase sends, byte for byte as in recorded frames of both feeds and over REST."""

import json
from collections.abc import Iterable, Mapping
from decimal import Decimal
from functools import lru_cache
from time import gmtime, strftime
from typing import Literal

from simulator.market import SECOND, UNITS, Candle, Product, Trade

Channel = Literal["matches", "heartbeat"]
"""The channels of the Exchange feed."""

AdvancedChannel = Literal["market_trades", "heartbeats"]
"""The channels of the Advanced Trade feed."""


def trimmed(units: int) -> str:
    """Write units of 1e-8 as a decimal without trailing zeros or exponent, as the socket does."""
    whole, rest = divmod(units, UNITS)
    return f"{whole}.{rest:08d}".rstrip("0") if rest else str(whole)


def padded(units: int) -> str:
    """Write units of 1e-8 with all 8 decimals, as REST does."""
    return f"{units // UNITS}.{units % UNITS:08d}"


def as_double(units: int) -> str:
    """Write units of 1e-8 as the nearest double, which candles are made of: in up to 17 digits."""
    return f"{Decimal(repr(units / UNITS)):f}".removesuffix(".0")


@lru_cache(maxsize=4096)
def _second(seconds: int) -> str:
    return strftime("%Y-%m-%dT%H:%M:%S", gmtime(seconds))


def iso(time: int) -> str:
    """Write market time (microseconds since 1970) with six decimals and `Z`."""
    return f"{_second(time // SECOND)}.{time % SECOND:06d}Z"


def match_frame(trade: Trade, kind: Literal["match", "last_match"] = "match") -> bytes:
    """Return the socket's frame for a trade."""
    size = padded(trade.size) if trade.size_padded else trimmed(trade.size)
    return (
        f'{{"type":"{kind}","trade_id":{trade.trade_id},'
        f'"maker_order_id":"{trade.maker_order_id}","taker_order_id":"{trade.taker_order_id}",'
        f'"side":"{trade.side}","size":"{size}","price":"{trimmed(trade.price)}",'
        f'"product_id":"{trade.product_id}","sequence":{trade.sequence},'
        f'"time":"{iso(trade.time)}"}}'
    ).encode()


def heartbeat_frame(product_id: str, last_trade_id: int, sequence: int, time: int) -> bytes:
    """Return the once-a-second frame of a product; `time` is cut to its whole second."""
    return (
        f'{{"type":"heartbeat","last_trade_id":{last_trade_id},"product_id":"{product_id}",'
        f'"sequence":{sequence},"time":"{iso(time - time % SECOND)}"}}'
    ).encode()


def trimmed_iso(time: int) -> str:
    """Write market time with three to six decimals, as the Advanced Trade feed does."""
    text = iso(time)[:-1]
    return f"{text[:-3]}{text[-3:].rstrip('0')}Z"


def _nanoseconds(time: int, between: str) -> str:
    """Write nanoseconds since 1970 without trailing zeros, as Go does."""
    seconds, rest = divmod(time, 1000 * SECOND)
    text = f"{_second(seconds)}.{rest:09d}".rstrip("0").rstrip(".")
    return text.replace("T", between)


def advanced_frame(
    channel: AdvancedChannel | Literal["subscriptions"], time: int, sequence_num: int, event: str
) -> bytes:
    """Return a frame of the Advanced Trade feed; `time` in nanoseconds since 1970."""
    return (
        f'{{"channel":"{channel}","timestamp":"{_nanoseconds(time, "T")}Z",'
        f'"sequence_num":{sequence_num},"events":[{event}]}}'
    ).encode()


def market_trades_event(kind: Literal["snapshot", "update"], trades: Iterable[Trade]) -> str:
    """Return the event of a `market_trades` frame; Coinbase gives the newest trade first."""
    listed = ",".join(
        f'{{"product_id":"{trade.product_id}","trade_id":"{trade.trade_id}",'
        f'"price":"{trimmed(trade.price)}","size":"{trimmed(trade.size)}",'
        f'"time":"{trimmed_iso(trade.time)}","side":"{trade.side.upper()}"}}'
        for trade in trades
    )
    return f'{{"type":"{kind}","trades":[{listed}]}}'


def heartbeats_event(time: int, running: int, counter: int) -> str:
    """Return the event of a `heartbeats` frame, at a time and after having run for so long.

    Both in nanoseconds; the text is that of a Go time with its monotonic clock.
    """
    seconds, rest = divmod(running, 1000 * SECOND)
    return (
        f'{{"current_time":"{_nanoseconds(time, " ")} +0000 UTC m=+{seconds}.{rest:09d}",'
        f'"heartbeat_counter":{counter}}}'
    )


def subscriptions_event(channels: Mapping[str, Iterable[str]]) -> str:
    """Return the event that lists what a connection is subscribed to; `heartbeats` lists itself."""
    listed = {name: list(channels[name]) for name in sorted(channels)}
    return json.dumps({"subscriptions": listed}, separators=(",", ":"))


def subscriptions_frame(channels: Mapping[str, Iterable[str]]) -> bytes:
    """Return the frame that lists all products a connection is subscribed to, by channel."""
    listed = [
        {"name": name, "product_ids": list(product_ids), "account_ids": None}
        for name, product_ids in channels.items()
    ]
    return json.dumps({"type": "subscriptions", "channels": listed}, separators=(",", ":")).encode()


def error_frame(message: str, reason: str | None = None) -> bytes:
    """Return an error frame, such as `Failed to subscribe` with its reason."""
    error = {"type": "error", "message": message}
    if reason is not None:
        error["reason"] = reason
    return json.dumps(error, separators=(",", ":")).encode()


def rest_trade(trade: Trade) -> str:
    """Return one row of `GET /products/{id}/trades`."""
    return (
        f'{{"trade_id":{trade.trade_id},"side":"{trade.side}","size":"{padded(trade.size)}",'
        f'"price":"{padded(trade.price)}","time":"{iso(trade.time)}"}}'
    )


def rest_row(trade: Trade) -> dict[str, str | int]:
    """Return the values of `rest_trade`, and the product that Coinbase leaves to the address."""
    return {
        "product_id": trade.product_id,
        "trade_id": trade.trade_id,
        "side": trade.side,
        "size": padded(trade.size),
        "price": padded(trade.price),
        "time": iso(trade.time),
    }


def rest_candle(candle: Candle) -> str:
    """Return one row of `GET /products/{id}/candles`: time, low, high, open, close, volume."""
    amounts = (candle.low, candle.high, candle.open, candle.close, candle.volume)
    return f"[{candle.time},{','.join(map(as_double, amounts))}]"


def rest_product(product: Product) -> dict[str, object]:
    """Return one row of `GET /products`."""
    return {
        "id": product.id,
        "base_currency": product.base_currency,
        "quote_currency": product.quote_currency,
        "quote_increment": trimmed(product.quote_increment),
        "base_increment": trimmed(product.base_increment),
        "display_name": product.id,
        "min_market_funds": "1",
        "margin_enabled": False,
        "post_only": False,
        "limit_only": False,
        "cancel_only": False,
        "status": "online" if product.online else "delisted",
        "status_message": "",
        "trading_disabled": not product.online,
        "fx_stablecoin": False,
        "max_slippage_percentage": "0.02000000",
        "auction_mode": False,
        "high_bid_limit_percentage": "",
    }
