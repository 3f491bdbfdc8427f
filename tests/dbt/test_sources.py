"""The same trades from three interfaces of Coinbase, which write them in three ways."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import permutations
from typing import Any

import pytest

from tests.candles import SECONDS, Candle, candles, query
from tests.dbt.conftest import Lakehouse, advanced_frame, match, rest_trade

pytestmark = pytest.mark.postgres18_only

SOURCES = ("exchange_ws", "advanced_ws", "rest")
QUARANTINE = (
    "select bronze_id, trade_position, reject_reasons, payload::text "
    "from silver.coinbase_trades_quarantine order by bronze_id, trade_position"
)
ALL_MISSING = [
    f"missing_{field}" for field in ("product_id", "trade_id", "price", "size", "side", "time")
]
FIELDS = ("product_id", "trade_id", "trade_time", "price", "size", "side", "taker_side")


def send(lakehouse: Lakehouse, source: str, *matches: dict[str, Any]) -> None:
    """Append matches to bronze in the way of an interface."""
    if source == "exchange_ws":
        lakehouse.receive(*matches)
    elif source == "advanced_ws":
        lakehouse.receive(advanced_frame(*matches), source=source)
    else:
        lakehouse.repair(*matches)


def test_a_trade_that_every_source_brings_is_one_trade_of_the_first(lakehouse: Lakehouse) -> None:
    # REST pads numbers, the Advanced feed writes sides in capitals.
    trades = match(1, price="79109.05", size="0.00041454"), match(2, side="buy", at=2.5)
    orders = {"-".join(order).upper().replace("_", ""): order for order in permutations(SOURCES)}
    for product_id, order in orders.items():
        for source in order:
            send(lakehouse, source, *(trade | {"product_id": product_id} for trade in trades))
    lakehouse.build()
    came_by = lakehouse.rows(
        "select product_id, array_agg(source) as sources from silver.coinbase_trades group by 1"
    )
    assert {row["product_id"]: row["sources"] for row in came_by} == {
        product_id: [order[0]] * 2 for product_id, order in orders.items()
    }
    assert lakehouse.rows(QUARANTINE) == []
    repaired = lakehouse.rows("select product_id, repaired_count from gold.ohlc_1d")
    assert {row["product_id"]: row["repaired_count"] for row in repaired} == {
        product_id: 2 if order[0] == "rest" else 0 for product_id, order in orders.items()
    }


def test_each_source_alone_makes_the_same_rows_of_silver(lakehouse: Lakehouse) -> None:
    trades = match(1), match(2, side="buy", price="0.00000409", size="12000000000", at=59.999999)
    made = []
    for product_id, source in zip(("A-USD", "B-USD", "C-USD"), SOURCES, strict=True):
        send(lakehouse, source, *(trade | {"product_id": product_id} for trade in trades))
        lakehouse.build()
        rows = lakehouse.rows(
            f"select {', '.join(FIELDS[1:])} from silver.coinbase_trades "
            "where product_id = $1 order by trade_id",
            product_id,
        )
        made.append([tuple(row.values()) for row in rows])
    assert len(made[0]) == 2
    assert made[0] == made[1] == made[2]


@pytest.mark.parametrize("source", ["advanced_ws", "rest"])
def test_a_source_that_disagrees_is_a_conflict(lakehouse: Lakehouse, source: str) -> None:
    lakehouse.receive(match(1), match(2))
    send(lakehouse, source, match(1), match(2, price="100.00000001"))
    lakehouse.build()
    (conflict,) = lakehouse.rows(QUARANTINE)
    assert conflict["reject_reasons"] == ["conflicting_duplicate"]
    assert "100.00000001" in conflict["payload"]


def test_a_malformed_advanced_frame_is_quarantined_and_the_trades_beside_it_are_not(
    lakehouse: Lakehouse,
) -> None:
    good = advanced_frame(match(1))["events"][0]["trades"][0]
    malformed: list[Any] = [
        {},
        {"events": None},
        {"events": "trades"},
        {"events": {"trades": [good]}},
        {"events": []},
        {"events": [None]},
        {"events": [good]},
        {"events": [{"type": "update"}]},
        {"events": [{"trades": 7}]},
        {"events": [{"trades": []}]},
        {"events": [{"trades": [None]}]},
        {"events": [{"trades": [5]}]},
        {"events": [{"trades": [[good]]}]},
    ]
    lakehouse.receive(*malformed, source="advanced_ws")
    lakehouse.receive(
        {"events": [{}, {"trades": [good | {"trade_id": "2"}, None, good | {"price": "x"}, good]}]},
        source="advanced_ws",
    )
    build = lakehouse.build()
    assert build.warned >= {"quarantine_share"}
    quarantined = lakehouse.rows(QUARANTINE)
    assert [
        (row["bronze_id"], row["trade_position"], row["reject_reasons"]) for row in quarantined
    ] == [
        *((number, 1, ALL_MISSING) for number in range(1, len(malformed) + 1)),
        (len(malformed) + 1, 1, ALL_MISSING),
        (len(malformed) + 1, 3, ALL_MISSING),
        (len(malformed) + 1, 4, ["invalid_price"]),
    ]
    accepted = lakehouse.rows("select trade_id from silver.coinbase_trades order by trade_id")
    assert accepted == [{"trade_id": 1}, {"trade_id": 2}]


def test_a_frame_of_more_elements_than_any_real_one_does_not_fill_the_disk(
    lakehouse: Lakehouse,
) -> None:
    lakehouse.receive({"events": [{"trades": [0] * 40_000}]}, source="advanced_ws")
    lakehouse.dbt("build")
    size = lakehouse.one(
        "select count(*) as n, max(trade_position) as last, sum(pg_column_size(payload)) as bytes "
        "from silver.coinbase_trades_quarantine"
    )
    assert (size["n"], size["last"]) == (40_000, 40_000)
    assert size["bytes"] < 1_000_000


def test_what_rest_brings_without_a_product_is_quarantined(lakehouse: Lakehouse) -> None:
    lakehouse.receive(rest_trade(match(1)), source="rest")
    lakehouse.receive("[1]", "null", source="rest", product_id="BTC-USD")
    lakehouse.receive(match(2))
    lakehouse.build()
    assert [row["reject_reasons"] for row in lakehouse.rows(QUARANTINE)] == [
        ["missing_product_id"],
        ALL_MISSING[1:],
        ALL_MISSING[1:],
    ]


def test_recorded_advanced_frames_become_the_candles_of_their_trades(
    lakehouse: Lakehouse, recorded_frames: Callable[[str], list[bytes]]
) -> None:
    frames = [json.loads(line) for line in recorded_frames("coinbase_advanced_2026-09-30.jsonl")]
    told = [frame for frame in frames if frame["channel"] == "market_trades"]
    trades = {
        (trade["product_id"], trade["trade_id"]): trade | {"side": trade["side"].lower()}
        for frame in told
        for event in frame["events"]
        for trade in event["trades"]
    }
    assert (len(told), len(trades)) == (28, 307)
    lakehouse.receive(*told, source="advanced_ws")
    # Each reconnect begins with the last trades once more.
    lakehouse.receive(*told[:2], source="advanced_ws")
    lakehouse.build()
    for table in SECONDS:
        rows = [Candle(**row) for row in lakehouse.rows(query(table))]
        assert rows == candles(trades.values(), table), table
    assert lakehouse.rows(QUARANTINE) == []
