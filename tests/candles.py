"""Candles worked out from trades in plain Python, to hold beside those of the lakehouse."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from decimal import Decimal, localcontext
from typing import Any, NamedTuple

SECONDS = {
    "ohlc_1m": 60,
    "ohlc_5m": 300,
    "ohlc_15m": 900,
    "ohlc_1h": 3600,
    "ohlc_6h": 6 * 3600,
    "ohlc_1d": 24 * 3600,
}


class Candle(NamedTuple):
    """One row of an ohlc table, but for what tells of its way: bronze_id and repaired_count."""

    product_id: str
    bucket: datetime
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    volume: Decimal
    quote_volume: Decimal
    vwap_fits: bool
    """Whether vwap is quote_volume / volume, as exactly as PostgreSQL divides."""
    trade_count: int
    taker_buy_volume: Decimal
    first_trade_id: int
    last_trade_id: int


def query(table: str) -> str:
    """Return the query whose rows are the `Candle`s of a table."""
    bucket = table.replace("ohlc", "bucket")
    special = {
        "bucket": f"{bucket} as bucket",
        "vwap_fits": "abs(vwap * volume - quote_volume) <= volume * 1e-10 as vwap_fits",
    }
    columns = ", ".join(special.get(name, name) for name in Candle._fields)
    return f"select {columns} from gold.{table} order by product_id, {bucket}"


def candles(frames: Iterable[dict[str, Any]], table: str) -> list[Candle]:
    """Return the candles of match frames, each trade given once, in the order of `query`."""
    seconds = SECONDS[table]
    trades = defaultdict(list)
    for frame in frames:
        time = datetime.fromisoformat(frame["time"])
        bucket = datetime.fromtimestamp(time.timestamp() // seconds * seconds, UTC)
        trades[frame["product_id"], bucket].append((time, int(frame["trade_id"]), frame))
    with localcontext(prec=100):
        return [
            _candle(*key, [frame for *_, frame in sorted(rows, key=lambda row: row[:2])])
            for key, rows in sorted(trades.items())
        ]


def _candle(product_id: str, bucket: datetime, frames: list[dict[str, Any]]) -> Candle:
    prices = [Decimal(frame["price"]) for frame in frames]
    sizes = [Decimal(frame["size"]) for frame in frames]
    quote_volume = sum((p * s for p, s in zip(prices, sizes, strict=True)), Decimal(0))
    # The maker sold to a taker who bought.
    bought = [s for s, frame in zip(sizes, frames, strict=True) if frame["side"] == "sell"]
    trade_ids = [int(frame["trade_id"]) for frame in frames]
    return Candle(
        product_id,
        bucket,
        prices[0],
        max(prices),
        min(prices),
        prices[-1],
        sum(sizes, Decimal(0)),
        quote_volume,
        True,
        len(frames),
        sum(bought, Decimal(0)),
        min(trade_ids),
        max(trade_ids),
    )
