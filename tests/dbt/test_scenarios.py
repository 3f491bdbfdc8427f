"""What comes in on the left, and what stands in silver and gold on the right."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from tests.candles import candles
from tests.dbt.conftest import NOON, Lakehouse, exchange_candle, match

pytestmark = pytest.mark.postgres18_only

OHLC = "select open, high, low, close, volume, trade_count from gold.{} order by 1"
LONGER = ["ohlc_1m", "ohlc_5m", "ohlc_15m", "ohlc_1h", "ohlc_6h", "ohlc_1d"]


def test_a_trade_becomes_a_candle_of_every_length(lakehouse: Lakehouse) -> None:
    lakehouse.receive(match(1, price="100.5", size="2"))
    lakehouse.build()
    for table in LONGER:
        assert lakehouse.rows(OHLC.format(table)) == [
            {
                "open": Decimal("100.5"),
                "high": Decimal("100.5"),
                "low": Decimal("100.5"),
                "close": Decimal("100.5"),
                "volume": Decimal(2),
                "trade_count": 1,
            }
        ], table


def test_a_duplicate_is_counted_once(lakehouse: Lakehouse) -> None:
    lakehouse.receive(match(1), match(1), match(2))
    lakehouse.run()
    lakehouse.receive(match(2), match(1, type="last_match"))
    lakehouse.build()
    assert lakehouse.one("select sum(trade_count) as n from gold.ohlc_1d")["n"] == 2
    assert lakehouse.rows("select * from silver.coinbase_trades_quarantine") == []


@pytest.mark.parametrize("separate_builds", [True, False])
def test_a_duplicate_that_disagrees_is_quarantined(
    lakehouse: Lakehouse, separate_builds: bool
) -> None:
    lakehouse.receive(match(1), match(2), match(3), match(4))
    if separate_builds:
        lakehouse.run()
    lakehouse.receive(
        match(1, price="100.01"), match(2, size="0.51"), match(3, side="buy"), match(4, at=30)
    )
    lakehouse.build()
    quarantined = lakehouse.rows(
        "select bronze_id, reject_reasons from silver.coinbase_trades_quarantine order by 1"
    )
    assert quarantined == [
        {"bronze_id": bronze_id, "reject_reasons": ["conflicting_duplicate"]}
        for bronze_id in (5, 6, 7, 8)
    ]
    assert lakehouse.rows("select distinct price, size, side from silver.coinbase_trades") == [
        {"price": Decimal(100), "size": Decimal("0.5"), "side": "sell"}
    ]


def test_a_duplicate_that_writes_its_numbers_otherwise_agrees(lakehouse: Lakehouse) -> None:
    lakehouse.receive(match(1), match(1, price="100.00000000", size=0.5, side="SELL"))
    lakehouse.build()
    assert lakehouse.rows("select * from silver.coinbase_trades_quarantine") == []


def test_a_late_trade_changes_open_and_close_of_every_candle(lakehouse: Lakehouse) -> None:
    lakehouse.receive(match(5, price="100", at=20), match(6, price="101", at=25))
    lakehouse.run()
    lakehouse.receive(match(4, price="90", at=1), match(7, price="95", at=59))
    lakehouse.build()
    for table in LONGER:
        assert lakehouse.one(OHLC.format(table)) == {
            "open": Decimal(90),
            "high": Decimal(101),
            "low": Decimal(90),
            "close": Decimal(95),
            "volume": Decimal(2),
            "trade_count": 4,
        }, table
    assert lakehouse.one("select open, close from gold.daily_kpis") == {
        "open": Decimal(90),
        "close": Decimal(95),
    }


def test_trades_out_of_order_are_ordered_by_time(lakehouse: Lakehouse) -> None:
    lakehouse.receive(
        match(3, price="103", at=30), match(1, price="101", at=10), match(2, price="102", at=20)
    )
    lakehouse.build()
    candle = lakehouse.one("select open, close from gold.ohlc_1m")
    assert candle == {"open": Decimal(101), "close": Decimal(103)}


def test_trades_of_the_same_microsecond_are_ordered_by_id(lakehouse: Lakehouse) -> None:
    lakehouse.receive(
        match(10, price="3", at=5), match(9, price="2", at=5), match(8, price="1", at=5)
    )
    lakehouse.build()
    candle = lakehouse.one("select open, close from gold.ohlc_1m")
    assert candle == {"open": Decimal(1), "close": Decimal(3)}


def test_two_products_may_use_the_same_trade_id(lakehouse: Lakehouse) -> None:
    lakehouse.receive(match(1), match(1, product_id="ETH-USD", price="2670.1"))
    lakehouse.build()
    assert lakehouse.rows("select product_id, close from gold.ohlc_1m order by product_id") == [
        {"product_id": "BTC-USD", "close": Decimal(100)},
        {"product_id": "ETH-USD", "close": Decimal("2670.1")},
    ]


def test_extreme_prices_and_sizes_are_kept_to_the_last_digit(lakehouse: Lakehouse) -> None:
    lakehouse.receive(
        match(1, product_id="PEPE-USD", price="0.00000000123", size="20000000000"),
        match(2, product_id="PEPE-USD", price="1.23e-9", size="0.00000001"),
    )
    lakehouse.build()
    candle = lakehouse.one("select low, high, volume, quote_volume from gold.ohlc_1m")
    assert candle == {
        "low": Decimal("1.23E-9"),
        "high": Decimal("1.23E-9"),
        "volume": Decimal("20000000000.00000001"),
        "quote_volume": Decimal("24.6000000000000000123"),
    }


def test_the_widest_range_of_prices_that_can_be_sent_builds(lakehouse: Lakehouse) -> None:
    lakehouse.receive(
        match(1, price="0." + "0" * 53 + "1e-99", at=0),
        match(2, price="9" * 57 + "e99", at=400),
        match(3, price="0." + "0" * 33 + "1e-99", at=800),
        match(4, price="9" * 37 + "e99", at=1200),
    )
    lakehouse.build()
    assert lakehouse.one("select trades from gold.daily_kpis") == {"trades": 2}


def test_side_is_the_makers_and_taker_side_its_opposite(lakehouse: Lakehouse) -> None:
    lakehouse.receive(match(1, side="sell", size="3"), match(2, side="buy", size="1"))
    lakehouse.build()
    assert lakehouse.rows(
        "select side, taker_side from silver.coinbase_trades order by trade_id"
    ) == [
        {"side": "sell", "taker_side": "buy"},
        {"side": "buy", "taker_side": "sell"},
    ]
    assert lakehouse.one("select taker_buy_share from gold.daily_kpis") == {
        "taker_buy_share": Decimal("0.75")
    }


def test_the_time_zone_of_the_session_changes_nothing(lakehouse: Lakehouse) -> None:
    frames = [match(number, at=number * 3600) for number in range(1, 30)]
    lakehouse.receive(*frames)
    lakehouse.run()
    in_utc = lakehouse.fingerprints()
    lakehouse.database.execute("alter role medallion_transform set timezone to 'Asia/Kathmandu'")
    try:
        lakehouse.run("--full-refresh")
        assert lakehouse.fingerprints() == in_utc
        lakehouse.receive(match(30, at=30 * 3600))
        lakehouse.run()
    finally:
        lakehouse.database.execute("alter role medallion_transform reset timezone")
    lakehouse.build("--full-refresh")
    days = lakehouse.rows("select bucket_1d from gold.ohlc_1d order by 1")
    midnight = NOON - timedelta(hours=12)
    assert [row["bucket_1d"] for row in days] == [
        midnight,
        midnight + timedelta(days=1),
    ]


def test_realised_volatility_is_the_root_of_the_squared_five_minute_returns(
    lakehouse: Lakehouse,
) -> None:
    lakehouse.receive(
        match(1, price="100", at=0),
        match(2, price="110", at=200),
        match(3, price="99", at=400),
        match(4, price="99", at=4000),
    )
    lakehouse.build()
    # ln(110/100) and ln(99/110), worked out by hand.
    expected = (Decimal("0.0953101798") ** 2 + Decimal("0.1053605157") ** 2).sqrt()
    kpis = lakehouse.one("select realised_volatility, price_change_pct from gold.daily_kpis")
    assert abs(kpis["realised_volatility"] - expected) < Decimal("1e-9")
    assert kpis["price_change_pct"] == Decimal("-1.0000")


def test_top_movers_rank_the_changes_of_three_periods(lakehouse: Lakehouse) -> None:
    hour = 3600
    lakehouse.receive(
        match(1, price="100", at=-30 * hour),
        match(2, price="200", at=-5 * hour),
        match(3, price="210", at=0),
        match(4, price="189", at=60),
        match(1, product_id="ETH-USD", price="50", at=-2 * hour),
        match(2, product_id="ETH-USD", price="51", at=30),
    )
    lakehouse.build()
    movers = lakehouse.rows(
        "select period, product_id, rank, price_change_pct from gold.top_movers "
        "order by period, rank"
    )
    assert [tuple(row.values()) for row in movers] == [
        ("1h", "BTC-USD", 1, Decimal("-10.0000")),
        ("1h", "ETH-USD", 2, Decimal("0.0000")),
        ("24h", "BTC-USD", 1, Decimal("-5.5000")),
        ("24h", "ETH-USD", 2, Decimal("2.0000")),
        ("7d", "BTC-USD", 1, Decimal("89.0000")),
        ("7d", "ETH-USD", 2, Decimal("2.0000")),
    ]


def test_a_trade_from_the_future_leaves_the_movers_and_freshness_alone(
    lakehouse: Lakehouse,
) -> None:
    ahead = int((datetime.now(UTC) - NOON).total_seconds()) + 20 * 3600
    lakehouse.receive(match(1, at=0), match(2, price="110", at=30), match(3, price="1", at=ahead))
    build = lakehouse.dbt("build")
    assert build.failed == set()
    assert "silver_freshness" in build.warned
    hour = lakehouse.one("select as_of, close from gold.top_movers where period = '1h'")
    assert hour == {"as_of": NOON + timedelta(minutes=1), "close": Decimal(110)}


def test_top_movers_keep_history_for_the_days_that_are_set(lakehouse: Lakehouse) -> None:
    lakehouse.receive(match(1, at=0))
    lakehouse.run()
    lakehouse.run()
    assert lakehouse.one("select count(distinct snapshot_ts) as n from gold.top_movers") == {"n": 1}
    lakehouse.receive(match(2, at=120))
    lakehouse.build("--full-refresh")
    assert lakehouse.one("select count(distinct snapshot_ts) as n from gold.top_movers") == {"n": 2}
    lakehouse.database.execute(
        "update gold.top_movers set snapshot_ts = now() - interval '2 days'"
        " where as_of = (select min(as_of) from gold.top_movers)"
    )
    lakehouse.receive(match(3, at=240))
    lakehouse.build("--vars", "{top_movers_history_days: 1}")
    assert lakehouse.one("select count(distinct as_of) as n from gold.top_movers") == {"n": 2}


def test_a_candle_is_judged_again_when_a_trade_beside_it_comes_late(lakehouse: Lakehouse) -> None:
    minute = timedelta(minutes=1)
    sent = [match(n, at=at, size="0.1") for n, at in enumerate((0, 60, 70, 120, 180), start=1)]
    first, second, third, _ = candles(sent, "ohlc_1m")
    missed = sent.pop(2)
    lakehouse.receive(*sent)
    lakehouse.record_gap("{[3,4)}")
    told = [exchange_candle(first), exchange_candle(second), exchange_candle(third, low=99.99)]
    lakehouse.answer(NOON, NOON + 2 * minute, *told)
    judged = "select verdict, is_whole from gold.candle_reconciliation order by bucket"

    lakehouse.run()
    assert [tuple(row.values()) for row in lakehouse.rows(judged)] == [
        ("agrees", True),
        ("differs", False),
        ("differs", False),
    ]
    # Neither the third candle nor the exchange's is new.
    lakehouse.repair(missed)
    assert lakehouse.dbt("build").failed == {"candles_agree_with_the_exchange"}
    assert [tuple(row.values()) for row in lakehouse.rows(judged)] == [
        ("agrees", True),
        ("agrees", True),
        ("differs", True),
    ]
    # The exchange corrects itself, and says no more that it ever had the first.
    lakehouse.answer(NOON + 2 * minute, NOON + 2 * minute, exchange_candle(third))
    lakehouse.build()
    lakehouse.answer(NOON, NOON)
    assert lakehouse.dbt("build").failed == {"candles_agree_with_the_exchange"}
    assert [row["verdict"] for row in lakehouse.rows(judged)] == ["only_ours", "agrees", "agrees"]
    step_by_step = lakehouse.fingerprints()
    lakehouse.dbt("build", "--full-refresh")
    assert lakehouse.fingerprints() == step_by_step
