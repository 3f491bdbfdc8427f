"""Capturing both feeds of a simulated exchange, to bronze on a real database."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from ingestion.capture import Capture
from ingestion.settings import IngestionSettings
from simulator.exchange import Exchange, ExchangeConfig
from simulator.faults import Faults
from simulator.frames import match_frame
from simulator.market import PRODUCTS
from tests.integration.test_ingestion_capture import sends
from tests.integration.test_ingestion_feed import exchange as scripted
from tests.integration.test_ingestion_feed import wait_for

pytestmark = pytest.mark.postgres18_only

START = datetime.now(UTC).replace(microsecond=0) - timedelta(days=1)
WANTED = ("BTC-USD", "ETH-USD", "SOL-USD")

# The ids of both feeds and of REST, as bronze holds them.
IDS = """
    select product_id, payload ->> 'trade_id' as trade_id
    from bronze.coinbase_trades_raw
    where source <> 'advanced_ws'
    union
    select trade ->> 'product_id', trade ->> 'trade_id'
    from bronze.coinbase_trades_raw
    cross join jsonb_path_query(payload, '$.events[*].trades[*]') as trade
    where source = 'advanced_ws'
"""


REPAIRED = """
    select (payload ->> 'trade_id')::bigint as trade_id
    from bronze.coinbase_trades_raw
    where product_id = 'NEW-USD' and source = 'rest'
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for gaps and listings more often than the world outside needs."""
    monkeypatch.setattr("ingestion.capture.GAP_GRACE_SECONDS", 0.3)
    monkeypatch.setattr("ingestion.bookkeeping.CHECK_SECONDS", 0.1)
    monkeypatch.setattr("ingestion.bookkeeping.COVER_SECONDS", 0.2)
    monkeypatch.setattr("ingestion.subscriptions.CATALOGUE_SECONDS", 0.3)


@asynccontextmanager
async def capturing(database: Any, exchange: Exchange, **changes: Any) -> AsyncIterator[Capture]:
    values = {
        "coinbase_ws_url": exchange.ws_url,
        "coinbase_advanced_ws_url": exchange.advanced_ws_url,
        "coinbase_products": ",".join(WANTED),
        "batch_size": 500,
        "flush_interval_seconds": 0.05,
        **changes,
    }
    settings = IngestionSettings(_env_file=None, **values)
    capture = Capture(settings, lambda: database.connect("medallion_ingest"))
    run = asyncio.create_task(capture.run())
    try:
        yield capture
    finally:
        capture.stop()
        await run


async def fetch(database: Any, query: str) -> list[Any]:
    return await asyncio.to_thread(database.fetch, query)


async def lacking(database: Any, exchange: Exchange) -> dict[str, list[int]]:
    """Return, per product, the trades that the exchange has made and bronze does not hold."""
    offered = exchange.status().trades
    stored = {(row["product_id"], row["trade_id"]) for row in await fetch(database, IDS)}
    return {
        product_id: [
            trade["trade_id"]
            for trade in exchange.trades(product_id, told.first_id, told.last_id)
            if (product_id, str(trade["trade_id"])) not in stored
        ]
        for product_id, told in offered.items()
    }


async def holds_all(database: Any, exchange: Exchange, patience: float = 20) -> None:
    """Wait until bronze holds every trade that the exchange has made."""
    missing: dict[str, list[int]] = {}
    try:
        async with asyncio.timeout(patience):
            while not exchange.finished or any(missing.values()):
                await asyncio.sleep(0.1)
                missing = await lacking(database, exchange)
    except TimeoutError:
        pytest.fail(f"bronze lacks {missing}")


def market(minutes: float, **changes: Any) -> Exchange:
    config = ExchangeConfig(start=START, end=START + timedelta(minutes=minutes), speed=None)
    return Exchange(replace(config, **changes))


async def test_the_advanced_feed_brings_every_trade(database: Any) -> None:
    async with market(5) as exchange, capturing(database, exchange, coinbase_feed="advanced"):
        await holds_all(database, exchange)
        assert set(exchange.status().trades) == set(WANTED)

    sessions = await fetch(database, "select * from bronze.feed_sessions")
    assert [row["source"] for row in sessions] == ["advanced_ws"]
    assert sessions[0]["products"] == list(WANTED)
    assert await fetch(database, "select from bronze.trade_gaps") == []


async def test_frames_that_the_advanced_feed_drops_are_noticed_and_repaired(database: Any) -> None:
    async with market(20, advanced_faults=Faults(dropped=0.05)) as exchange:
        with capture_logs() as logs:
            async with capturing(database, exchange, coinbase_feed="advanced"):
                await holds_all(database, exchange)
        assert exchange.status().advanced.dropped > 5

    assert "frames_dropped" in {entry["event"] for entry in logs}
    sources = await fetch(database, "select distinct source from bronze.coinbase_trades_raw")
    assert {row["source"] for row in sources} == {"advanced_ws", "rest"}


@pytest.mark.parametrize("dying", ["feed", "advanced"])
async def test_of_both_feeds_one_may_die_without_a_gap(database: Any, dying: str) -> None:
    async with (
        market(60, speed=1200) as exchange,
        capturing(database, exchange, coinbase_feed="both") as capture,
    ):
        await wait_for(lambda: capture.stats.trades >= 400)
        getattr(exchange, dying).silent = True
        await holds_all(database, exchange)
        assert capture.stats.repaired == 0

    assert await fetch(database, "select from bronze.trade_gaps") == []


async def test_all_products_are_followed_over_several_connections(database: Any) -> None:
    async with market(24 * 60, speed=300) as exchange:
        with capture_logs() as logs:
            async with capturing(
                database, exchange, coinbase_products="all", products_per_connection=5
            ) as capture:
                await wait_for(lambda: len(exchange.status().trades) >= 12)
                exchange.list_product(replace(PRODUCTS["LTC-USD"], id="NEW-USD"))
                exchange.delist("AVAX-USD")
                await wait_for(lambda: "NEW-USD" in exchange.status().trades)
                exchange.list_product(replace(PRODUCTS["LTC-USD"], id="LAST-USD"))
                await wait_for(lambda: any("LAST-USD" in e.get("products", ()) for e in logs))
                assert capture.stats.reconnects == 0

    changes = [entry for entry in logs if entry["event"] == "products_changed"]
    assert [entry["listed"] for entry in changes] == [("NEW-USD",), ("LAST-USD",)]
    assert [entry["delisted"] for entry in changes] == [["AVAX-USD"], []]
    sessions = await fetch(database, "select products from bronze.feed_sessions")
    followed = [product for row in sessions for product in row["products"]]
    # Twelve are online, five a connection; of the new ones the first two take free places.
    assert len(sessions) == 3
    assert set(followed) == {*PRODUCTS, "NEW-USD", "LAST-USD"} - {"YFI-USD", "AVAX-USD"}


async def test_a_restart_goes_on_where_the_last_run_left_off(database: Any) -> None:
    async with market(60, speed=600) as exchange:
        async with capturing(database, exchange) as capture:
            await wait_for(lambda: capture.stats.rows >= 100)
        async with capturing(database, exchange) as capture:
            await holds_all(database, exchange)
            repaired = capture.stats.repaired

    gaps = await fetch(database, "select sum(last_id - first_id + 1) from bronze.trade_gaps")
    # What was made while nobody listened, and nothing that was there already.
    assert repaired == gaps[0]["sum"] > 0
    stored = await fetch(
        database,
        "select count(*) - count(distinct (product_id, payload ->> 'trade_id')) as twice "
        "from bronze.coinbase_trades_raw",
    )
    # The last match before each subscription comes again.
    assert stored[0]["twice"] <= len(WANTED)


async def test_a_trade_whose_frame_postgres_refuses_is_fetched_over_rest(database: Any) -> None:
    async with market(2) as exchange:
        newest = exchange.market["BTC-USD"].last_trade_id(exchange.market_time)
        frames = [
            match_frame(trade) for trade in exchange.market["BTC-USD"].trades(newest - 3, newest)
        ]
        spoilt = frames[1].replace(b'"side":"', b'"side":"\\u0000')
        script = sends(frames[0].decode(), spoilt.decode(), *(f.decode() for f in frames[2:]))
        async with scripted(script) as feed:
            changes = {"coinbase_ws_url": feed.url, "coinbase_rest_url": exchange.rest_url}
            async with capturing(database, exchange, **changes) as capture:
                await wait_for(lambda: capture.stats.repaired == 1)
                assert capture.stats.rejected == 1

    rows = await fetch(
        database,
        "select source, (payload ->> 'trade_id')::bigint as id from bronze.coinbase_trades_raw "
        "order by 2",
    )
    assert [(row["source"], row["id"]) for row in rows] == [
        ("exchange_ws", newest - 3),
        ("rest", newest - 2),
        ("exchange_ws", newest - 1),
        ("exchange_ws", newest),
    ]


async def test_a_frame_of_no_product_does_not_keep_gaps_from_being_recorded(database: Any) -> None:
    def frame(product_id: str, trade_id: int) -> str:
        return json.dumps({"type": "match", "product_id": product_id, "trade_id": trade_id})

    odd = [frame(name, 7) for name in ("BTC\0USD", "X" * 3000, "btc", "")]
    script = sends(*(frame("BTC-USD", number) for number in (1, 2)), *odd, frame("BTC-USD", 5))
    async with market(1) as exchange, scripted(script) as feed:
        changes = {"coinbase_ws_url": feed.url, "coinbase_rest_url": exchange.rest_url}
        async with capturing(database, exchange, **changes) as capture:
            await wait_for(lambda: capture.stats.trades == 7)

    gaps = await fetch(database, "select product_id, first_id, last_id from bronze.trade_gaps")
    assert ("BTC-USD", 3, 4) in [tuple(row) for row in gaps]
    assert {row["product_id"] for row in gaps} == {"BTC-USD"}


async def test_usdc_products_go_on_under_the_name_that_their_trades_have(database: Any) -> None:
    changes = {"coinbase_feed": "advanced", "coinbase_products": "BTC-USDC"}
    async with market(600, speed=1200) as exchange:
        async with capturing(database, exchange, **changes) as capture:
            await wait_for(lambda: capture.stats.rows > 20)
        # More than the hundred trades of the next snapshot.
        newest = exchange.market["BTC-USD"].last_trade_id(exchange.market_time)
        await wait_for(
            lambda: exchange.market["BTC-USD"].last_trade_id(exchange.market_time) > newest + 300
        )
        async with capturing(database, exchange, **changes) as capture:
            await wait_for(lambda: capture.stats.repaired > 100)
            assert set(exchange.status().trades) == {"BTC-USD"}


async def test_a_product_listed_meanwhile_is_followed_from_its_first_trade(database: Any) -> None:
    async with (
        market(24 * 60, speed=600) as exchange,
        capturing(database, exchange, coinbase_products="all"),
    ):
        await wait_for(lambda: len(exchange.status().trades) >= 12)
        exchange.list_product(replace(PRODUCTS["BTC-USD"], id="NEW-USD"))
        await wait_for(lambda: exchange.market["NEW-USD"].last_trade_id(exchange.market_time) > 20)
        await wait_for(lambda: "NEW-USD" in exchange.status().trades)
        first = exchange.status().trades["NEW-USD"].first_id
        assert first > 1
        repaired: set[int] = set()
        async with asyncio.timeout(20):
            while not repaired >= set(range(1, first)):
                await asyncio.sleep(0.1)
                repaired = {row["trade_id"] for row in await fetch(database, REPAIRED)}
