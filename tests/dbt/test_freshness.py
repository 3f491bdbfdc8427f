"""What warns that nothing new arrives: `dbt source freshness`, which no build runs, and checks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tests.dbt.conftest import Lakehouse, match

pytestmark = pytest.mark.postgres18_only


def test_the_verdict_is_on_the_frame_that_arrived_last(lakehouse: Lakehouse) -> None:
    verdicts = {}
    for minutes in (70, 20, 1):
        lakehouse.receive(
            match(minutes), received_at=datetime.now(UTC) - timedelta(minutes=minutes)
        )
        freshness = lakehouse.dbt("source", "freshness")
        verdicts[minutes] = freshness.statuses["coinbase_trades_raw"]
    assert verdicts == {70: "error", 20: "warn", 1: "pass"}


def test_an_empty_bronze_is_stale(lakehouse: Lakehouse) -> None:
    freshness = lakehouse.dbt("source", "freshness")
    assert freshness.statuses["coinbase_trades_raw"] == "error"


@pytest.mark.parametrize(
    ("age", "warned"),
    [(timedelta(minutes=1), False), (timedelta(hours=2), True), (timedelta(days=6), True)],
)
def test_a_check_warns_of_candles_however_old(
    lakehouse: Lakehouse, age: timedelta, warned: bool
) -> None:
    lakehouse.receive(match(1, time=(datetime.now(UTC) - age).isoformat()))
    assert ("ohlc_1m_is_recent" in lakehouse.build().warned) is warned
