"""`medallion demo`, as a newcomer runs it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from simulator.market import Market
from tests.conftest import ROOT, Database

pytestmark = pytest.mark.postgres18_only

PRODUCTS = ("BONK-USD", "PEPE-USD")


def demo(database: Database, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "medallion", "demo", *arguments],
        env={**os.environ, **database.environment(), "COLUMNS": "120"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_demo_shows_a_market_day_and_continues_it_the_next_time(database: Database) -> None:
    first = demo(database, "--products", ",".join(PRODUCTS))
    assert first.returncode == 0, first.stdout + first.stderr
    for title in (
        "gold.ohlc_1m", "gold.daily_kpis", "gold.top_movers", "Checks of this build",
        "silver.coinbase_trades_quarantine", "bronze.coinbase_frames_rejected", "Look further",
    ):  # fmt: skip
        assert title in first.stdout
    assert re.search(r"trades, [\d,]+/s, [\d,]+ rows in bronze", first.stdout)
    assert re.search(r"repairing .* nothing is missing", first.stdout)
    assert "Products    13 in the exchange's catalogue" in first.stdout
    (dimension,) = database.fetch(
        "select count(*) as products, count(*) filter (where is_traded) as traded "
        "from gold.dim_products"
    )
    assert tuple(dimension) == (13, 12)
    (gaps,) = database.fetch(
        "select count(*) as gaps, sum(repaired) as repaired, array_agg(distinct status) as ended"
        " from bronze.trade_gaps"
    )
    assert f"{gaps['repaired']} trades that the feed left out, fetched over REST" in first.stdout
    assert (gaps["gaps"] > 3, gaps["ended"]) == (True, ["repaired"])
    (day,) = database.fetch(
        "select count(*) as trades, min(trade_time) as oldest, max(trade_time) as newest"
        " from silver.coinbase_trades"
    )
    assert day["trades"] > 15_000
    assert 86_000 < (day["newest"] - day["oldest"]).total_seconds() < 86_500

    second = demo(database, "--products", ",".join(PRODUCTS))
    assert second.returncode == 0, second.stdout + second.stderr
    verdicts = database.fetch("select distinct status from ops.dq_check_results")
    assert [row["status"] for row in verdicts] == ["pass"]
    # Not one trade lost, by the market's own count: its ids up to the newest in silver.
    for row in database.fetch(
        "select product_id, count(*) as trades, min(trade_id) as first, max(trade_id) as last,"
        " max(trade_time) as newest from silver.coinbase_trades group by product_id"
    ):
        assert row["trades"] == row["last"] - row["first"] + 1
        newest = round(row["newest"].timestamp() * 1e6)
        assert Market(0)[row["product_id"]].last_trade_id(newest) == row["last"]


def test_the_demo_of_a_recording_serves_its_frames_and_keeps_it_apart(
    database: Database, tmp_path: Path
) -> None:
    frames = [
        {
            "type": "match",
            "trade_id": trade_id,
            "side": "sell",
            "size": "0.5",
            "price": f"{100 + trade_id}",
            "product_id": "BTC-USD",
            "sequence": trade_id,
            "time": f"2026-11-20T12:00:0{trade_id}.000000Z",
        }
        for trade_id in (1, 2, 3)
    ]
    recording = tmp_path / "three trades.jsonl"
    recording.write_text("\n".join(map(json.dumps, frames)))
    shown = demo(database, "--source", str(recording))
    assert shown.returncode == 0, shown.stdout + shown.stderr
    (candle,) = database.fetch("select open, close, trade_count from gold.ohlc_1d")
    assert tuple(candle) == (101, 103, 3)

    refused = demo(database)
    assert refused.returncode == 2
    told = " ".join(refused.stderr.split())
    assert "must not be mixed in" in told
    assert "PGDATABASE" in told
    assert "Traceback" not in refused.stderr


def test_a_recording_that_is_none_is_refused(database: Database, tmp_path: Path) -> None:
    for content in (None, "", "not json", '{"type": "match"}'):
        file = tmp_path / "frames.jsonl"
        if content is not None:
            file.write_text(content)
        refused = demo(database, "--source", str(file))
        assert refused.returncode == 2, content
        assert str(file) in refused.stderr.replace("\n", "")
        assert "Traceback" not in refused.stderr
