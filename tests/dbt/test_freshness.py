"""`dbt source freshness`, which no build runs."""

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
