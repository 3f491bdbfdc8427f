"""Gold of chosen days, made anew from silver: by whom it was spoiled does not matter."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from tests.candles import candles
from tests.dbt.conftest import NOON, Lakehouse, exchange_candle, match

pytestmark = pytest.mark.postgres18_only

DAY = timedelta(days=1)
SPOILED = "spoiled"
BUCKETS = {
    "ohlc_1m": "bucket_1m",
    "ohlc_5m": "bucket_5m",
    "ohlc_15m": "bucket_15m",
    "ohlc_1h": "bucket_1h",
    "ohlc_6h": "bucket_6h",
    "ohlc_1d": "bucket_1d",
    "daily_kpis": "day",
    "trade_completeness": "day",
    "candle_reconciliation": "bucket",
}
VOLUMES = {"daily_kpis": "volume", "trade_completeness": "trades"}


@pytest.fixture
def three_days(lakehouse: Lakehouse) -> Lakehouse:
    """Trades at midnight's edges and at noon of three days; ids 4 and 5 are missing."""
    seconds = [-43_200, -30, 0, 61, 43_199]
    frames: list[dict[str, Any]] = []
    for day in range(-2, 1):
        for second in seconds:
            trade_id = len(frames) + 1 + (2 if len(frames) > 2 else 0)
            at = day * 86_400 + second
            frames.append(match(trade_id, at=at, price=f"{100 + trade_id}", size=f"{trade_id}"))
    lakehouse.record_gap("{[4,6)}")
    lakehouse.receive(*frames)
    for candle in candles(frames, "ohlc_1m"):
        lakehouse.answer(candle.bucket, candle.bucket, exchange_candle(candle))
    lakehouse.build()
    return lakehouse


def days(first: datetime, last: datetime) -> tuple[str, str]:
    return "--vars", f"{{rebuild_from: {first:%Y-%m-%d}, rebuild_until: {last + DAY:%Y-%m-%d}}}"


def spoil(lakehouse: Lakehouse, day: datetime) -> None:
    """Change, remove and make up rows of a day in each table of gold."""
    midnight = f"{day:%Y-%m-%d}"
    for table, bucket in BUCKETS.items():
        volume = VOLUMES.get(table, "volume")
        lakehouse.database.execute(
            f"update gold.{table} set {volume} = {volume} + 1 "
            f"where {bucket} >= '{midnight}' and {bucket} < '{midnight}'::date + 1;"
            f"delete from gold.{table} where {bucket} = (select max({bucket}) from gold.{table} "
            f"where {bucket} >= '{midnight}' and {bucket} < '{midnight}'::date + 1);"
            f"insert into gold.{table} select (jsonb_populate_record(t, "
            f"jsonb_build_object('product_id', '{SPOILED}', '{bucket}', '{midnight}'))).* "
            f"from gold.{table} as t limit 1"
        )


@pytest.mark.parametrize("chosen", [NOON - 2 * DAY, NOON - DAY, NOON], ids=["first", "mid", "last"])
def test_a_rebuilt_day_is_what_a_full_refresh_makes(
    three_days: Lakehouse, chosen: datetime
) -> None:
    built = three_days.fingerprints()
    spoil(three_days, chosen)
    assert three_days.fingerprints() != built
    three_days.build("-s", "gold", *days(chosen, chosen))
    assert three_days.fingerprints() == built
    three_days.dbt("run", "--full-refresh")
    assert three_days.fingerprints() == built


def test_days_that_were_not_chosen_stay_as_they_are(three_days: Lakehouse) -> None:
    built = three_days.fingerprints()
    for day in (NOON - 2 * DAY, NOON - DAY, NOON):
        spoil(three_days, day)
    three_days.dbt("run", "-s", "gold", *days(NOON - 2 * DAY, NOON - DAY))
    left = three_days.rows("select bucket_1m from gold.ohlc_1m where product_id = $1", SPOILED)
    assert [row["bucket_1m"].date() for row in left] == [NOON.date()]
    three_days.dbt("run", "-s", "gold", *days(NOON, NOON))
    assert three_days.fingerprints() == built


def test_a_rebuild_reads_new_trades_as_well_and_leaves_the_next_build_nothing_to_mend(
    three_days: Lakehouse,
) -> None:
    spoil(three_days, NOON - DAY)
    three_days.receive(match(90, at=-86_400 + 5), match(91, at=7))
    three_days.record_gap("{[18,90)}")
    three_days.dbt("run", "-s", "silver")
    three_days.build("-s", "gold", *days(NOON - DAY, NOON - DAY))
    step_by_step = three_days.fingerprints()
    three_days.build()
    assert three_days.fingerprints() == step_by_step
    three_days.dbt("run", "--full-refresh")
    assert three_days.fingerprints() == step_by_step
