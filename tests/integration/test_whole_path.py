"""The way of a trade from the exchange's socket to a candle, every stage of it real."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from ingestion.capture import Capture, CaptureStats
from ingestion.settings import IngestionSettings
from simulator.exchange import Exchange, ExchangeConfig
from simulator.faults import Faults
from simulator.recording import Recording, RecordingServer
from simulator.server import FeedServer, Status
from tests.candles import SECONDS, Candle, candles, query

if TYPE_CHECKING:
    from tests.dbt.conftest import Lakehouse

PATIENCE_SECONDS = 30


async def capture_all(
    lakehouse: Lakehouse, server: FeedServer, products: tuple[str, ...]
) -> CaptureStats:
    """Record until everything that the server has to give is in bronze."""
    settings = IngestionSettings(
        _env_file=None,
        coinbase_ws_url=server.ws_url,
        coinbase_products=products,
        batch_size=500,
        flush_interval_seconds=0.05,
    )
    capture = Capture(settings, lambda: lakehouse.database.connect("medallion_ingest"))
    run = asyncio.create_task(capture.run())
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not is_complete(server.status(), capture.stats):  # noqa: ASYNC110  (counts)
                await asyncio.sleep(0.02)
    finally:
        capture.stop()
        stats = await run
    return stats


def is_complete(sent: Status, received: CaptureStats) -> bool:
    stored = received.rows + received.rejected
    return sent.finished and stored >= sent.frames_sent + sent.last_matches


def gold(lakehouse: Lakehouse, table: str) -> list[Candle]:
    return [Candle(**row) for row in lakehouse.rows(query(table))]


def test_recorded_frames_become_the_candles_of_their_trades(
    lakehouse: Lakehouse, recorded_frames: Callable[[str], list[bytes]], tmp_path: Path
) -> None:
    lines = recorded_frames("coinbase_exchange_2026-09-30.jsonl")
    frames = [json.loads(line) for line in lines]
    matches = [frame for frame in frames if frame["type"] in {"match", "last_match"}]
    trades = {(frame["product_id"], frame["trade_id"]): frame for frame in matches}
    assert (len(matches), len(trades)) == (63, 63)
    file = tmp_path / "recorded.jsonl"
    file.write_bytes(b"\n".join(lines))

    async def record() -> None:
        async with RecordingServer(Recording.load(file)) as server:
            await capture_all(lakehouse, server, ("BTC-USD", "ETH-USD"))

    asyncio.run(record())
    lakehouse.build()

    for table in SECONDS:
        assert gold(lakehouse, table) == candles(trades.values(), table), table
    assert lakehouse.one(
        "select (select count(*) from bronze.coinbase_trades_raw) as received, "
        "(select count(*) from silver.coinbase_trades) as accepted, "
        "(select count(*) from silver.coinbase_trades_quarantine) as quarantined, "
        "(select count(*) from bronze.coinbase_frames_rejected) as rejected"
    ) == {"received": 63, "accepted": 63, "quarantined": 0, "rejected": 0}
    assert lakehouse.one(
        "select bronze_low, bronze_high, records_processed, status from ops.pipeline_runs"
    ) == {"bronze_low": 0, "bronze_high": 63, "records_processed": 63, "status": "success"}


async def rest_rows(url: str, **query: Any) -> list[Any]:
    async with httpx.AsyncClient() as client:
        answer = await client.get(url, params=query)
        rows: list[Any] = answer.raise_for_status().json()
        return rows


async def rest_trades(server: Exchange, product_id: str, first: int, last: int) -> list[Any]:
    """Return the trades that the exchange's own books hold, as match frames."""
    rows: list[Any] = []
    while not rows or rows[-1]["trade_id"] > first:
        after = rows[-1]["trade_id"] if rows else last + 1
        rows += await rest_rows(
            f"{server.rest_url}/products/{product_id}/trades", after=after, limit=1000
        )
    return [row | {"product_id": product_id} for row in rows if row["trade_id"] >= first]


def test_a_faulty_feed_loses_no_trade_and_counts_none_twice(lakehouse: Lakehouse) -> None:
    products = ("BTC-USD", "ETH-USD", "PEPE-USD", "BONK-USD")
    yesterday = datetime.now(UTC) - timedelta(days=1)
    start = yesterday.replace(hour=12, minute=0, second=30, microsecond=0)
    config = ExchangeConfig(
        seed=5,
        start=start,
        end=start + timedelta(minutes=30),
        speed=None,
        faults=Faults(duplicates=0.05, late=0.05, malformed=0.02, seed=5),
    )

    async def record() -> tuple[Status, CaptureStats, list[Any]]:
        async with Exchange(config) as server:
            stats = await capture_all(lakehouse, server, products)
            status = server.status()
            trades = []
            for product_id, made in status.trades.items():
                trades += await rest_trades(server, product_id, made.first_id, made.last_id)
            return status, stats, trades

    status, stats, trades = asyncio.run(record())
    build = lakehouse.build()

    made = sum(offered.count for offered in status.trades.values())
    assert set(status.trades) == set(products)
    assert made > 2000
    assert min(status.duplicates, status.late, status.malformed) > 30
    # The faulty frames are 2 %, more than the share that goes unnoticed.
    assert "quarantine_share" in build.warned

    silver = lakehouse.rows("select product_id, trade_id from silver.coinbase_trades")
    assert len(silver) == made
    assert {(row["product_id"], row["trade_id"]) for row in silver} == {
        (product_id, trade_id)
        for product_id, offered in status.trades.items()
        for trade_id in range(offered.first_id, offered.last_id + 1)
    }
    for table in SECONDS:
        assert gold(lakehouse, table) == candles(trades, table), table

    quarantined = lakehouse.rows("select reject_reasons from silver.coinbase_trades_quarantine")
    assert {"conflicting_duplicate"} not in [set(row["reject_reasons"]) for row in quarantined]
    assert len(quarantined) + stats.rejected == status.malformed
    assert min(len(quarantined), stats.rejected) > 0
    assert lakehouse.one("select count(*) as received from bronze.coinbase_trades_raw") == {
        "received": made + status.duplicates + len(quarantined)
    }
