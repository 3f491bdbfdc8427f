"""Faults. Each test ends in the same sentence: every trade is in silver exactly once."""

from __future__ import annotations

import asyncio
import random
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from simulator.faults import Faults, RestFaults
from simulator.server import Limits
from tests.dbt.conftest import Dbt
from tests.dbt.test_runs import build_in_another_process
from tests.faults.conftest import Ending
from tests.faults.world import World

pytestmark = [pytest.mark.postgres18_only, pytest.mark.timeout(900)]

HOUR = 3600


async def test_connection_cut_in_the_middle(
    world: World, every_trade_is_in_silver_exactly_once: Ending
) -> None:
    async with world.market() as exchange, world.capturing():
        await world.flows()
        await exchange.drop_connections()
        await world.reconnects()
        await world.recovers()
    await every_trade_is_in_silver_exactly_once()


async def test_silent_socket(world: World, every_trade_is_in_silver_exactly_once: Ending) -> None:
    async with world.market() as exchange, world.capturing() as capture:
        await world.flows()
        exchange.silent = True
        await world.wait_for(lambda: capture.stats.reconnects)
        exchange.silent = False
        await world.recovers()
    await every_trade_is_in_silver_exactly_once()


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        pytest.param(1000, "", id="1000"),
        pytest.param(1001, "", id="1001"),
        pytest.param(1011, "", id="1011"),
        pytest.param(1008, "ErrSlowConsume", id="ErrSlowConsume"),
    ],
)
async def test_server_closing_with(
    world: World, code: int, reason: str, every_trade_is_in_silver_exactly_once: Ending
) -> None:
    async with world.market() as exchange, world.capturing():
        await world.flows()
        await exchange.close_connections(code, reason)
        await world.reconnects()
        await world.recovers()
    await every_trade_is_in_silver_exactly_once()


async def test_ingester_too_slow_for_the_exchange(
    world: World, every_trade_is_in_silver_exactly_once: Ending
) -> None:
    # More trades fill the buffers in between sooner.
    market = world.market(speed=2 * world.figures.speed, limits=Limits(unread_bytes=100_000))
    async with market as exchange, world.ingester() as ingester:
        await world.flows()
        [reader] = exchange.feed.readers
        ingester.send_signal(signal.SIGSTOP)
        await world.wait_for(lambda: reader not in exchange.feed.readers)
        ingester.send_signal(signal.SIGCONT)
        await world.recovers()
        await world.stop(ingester)
    await every_trade_is_in_silver_exactly_once()


async def test_malformed_binary_and_giant_frames(
    world: World, every_trade_is_in_silver_exactly_once: Ending
) -> None:
    faults = Faults(malformed=0.02, giant=True)
    async with world.market(faults=faults) as exchange, world.capturing() as capture:
        await world.flows()
        await world.wait_for(lambda: capture.stats.rejected)
        await world.recovers()
    assert exchange.status().malformed > 50
    await every_trade_is_in_silver_exactly_once()


async def test_dropped_duplicated_late_and_shuffled(
    world: World, every_trade_is_in_silver_exactly_once: Ending
) -> None:
    faults = Faults(dropped=0.01, duplicates=0.05, late=0.05, late_by=timedelta(seconds=HOUR))
    async with world.market(faults=faults) as exchange, world.capturing():
        await world.flows(HOUR / world.figures.speed)
        await world.recovers()
    sent = exchange.status()
    assert min(sent.dropped, sent.duplicates, sent.late) > 10
    await every_trade_is_in_silver_exactly_once()


async def test_postgres_stopped_fast(
    world: World, every_trade_is_in_silver_exactly_once: Ending
) -> None:
    async with world.market(), world.capturing():
        await world.flows()
        await world.stop_postgres()
        await world.flows(world.figures.outage)
        await world.start_postgres()
        await world.recovers()
    await every_trade_is_in_silver_exactly_once()


async def test_postgres_killed(world: World, every_trade_is_in_silver_exactly_once: Ending) -> None:
    async with world.market(), world.capturing():
        await world.flows()
        await world.kill_postgres()
        await world.flows(world.figures.outage)
        await world.start_postgres()
        await world.recovers()
    await every_trade_is_in_silver_exactly_once()


async def test_database_closed_for_longer_than_memory_lasts(
    world: World, every_trade_is_in_silver_exactly_once: Ending
) -> None:
    memory = world.figures.memory
    async with (
        world.market(),
        world.capturing(max_buffered_frames=memory, batch_size=1000) as capture,
    ):
        await world.flows()
        async with world.closed_database():
            await world.flows(world.figures.closed)
            assert capture.stats.spooled > memory
        await world.recovers()
        assert capture.stats.not_kept == 0
    await every_trade_is_in_silver_exactly_once()


async def test_disk_full_for_the_spool(
    world: World, small_disk: Path, every_trade_is_in_silver_exactly_once: Ending
) -> None:
    async with (
        world.market(),
        world.capturing(max_buffered_frames=500, batch_size=100, spool_dir=small_disk) as capture,
    ):
        await world.flows()
        async with world.closed_database():
            await world.flows(world.figures.outage)
            assert capture.stats.not_kept > 0
        await world.recovers()
    await every_trade_is_in_silver_exactly_once()


async def test_lock_held_on_bronze(
    world: World, every_trade_is_in_silver_exactly_once: Ending
) -> None:
    async with world.market(), world.capturing():
        await world.flows()
        async with world.locked_bronze():
            await world.flows(world.figures.lock)
        await world.recovers()
    await every_trade_is_in_silver_exactly_once()


async def test_statement_timeout(
    world: World, every_trade_is_in_silver_exactly_once: Ending
) -> None:
    await world.fetch(
        f"alter role medallion_ingest in database {world.database.name} "
        "set statement_timeout to '500ms'"
    )
    with capture_logs() as logs:
        async with world.market(), world.capturing():
            await world.flows()
            async with world.locked_bronze():
                await world.flows(world.figures.lock)
            await world.recovers()
    assert any("statement timeout" in entry.get("error", "") for entry in logs)
    await every_trade_is_in_silver_exactly_once()


@pytest.mark.parametrize("seed", [1], ids="seed {}".format)
async def test_ingester_killed_at_random_moments(
    world: World, seed: int, every_trade_is_in_silver_exactly_once: Ending
) -> None:
    moments = random.Random(seed)
    async with world.market():
        async with world.ingester() as ingester:
            # As soon as there is something to go on from.
            await world.flows(0)
            ingester.kill()
        for _ in range(world.figures.kills - 1):
            async with world.ingester() as ingester:
                await world.flows(moments.uniform(0, world.figures.life))
                ingester.kill()
        async with world.ingester() as ingester:
            await world.recovers()
            await world.stop(ingester)
    await every_trade_is_in_silver_exactly_once()


async def test_ingester_killed_while_the_database_is_closed(
    world: World, every_trade_is_in_silver_exactly_once: Ending
) -> None:
    memory = {"MAX_BUFFERED_FRAMES": str(world.figures.memory), "BATCH_SIZE": "1000"}
    async with world.market():
        async with world.ingester(**memory) as ingester:
            await world.flows(0)
            async with world.closed_database():
                await world.flows(world.figures.closed)
                ingester.kill()
        async with world.ingester() as ingester:
            await world.recovers()
            await world.stop(ingester)
    assert "spool_found" in world.said()
    await every_trade_is_in_silver_exactly_once()


async def test_two_ingesters_at_once(
    world: World, every_trade_is_in_silver_exactly_once: Ending
) -> None:
    async with (
        world.market(faults=Faults(dropped=0.01)) as exchange,
        world.ingester() as one,
        world.ingester() as other,
    ):
        await world.wait_for(lambda: len(exchange.feed.readers) == 2)
        await world.flows()
        await exchange.drop_connections()
        await world.reconnects()
        await world.recovers()
        await world.stop(one)
        await world.stop(other)
    await every_trade_is_in_silver_exactly_once()


async def test_rest_failing_in_every_way(
    world: World, every_trade_is_in_silver_exactly_once: Ending
) -> None:
    faults = RestFaults(too_many=0.25, failing=0.25, hanging=0.25, truncated=0.25)
    async with world.market(faults=Faults(dropped=0.01)) as exchange, world.capturing():
        exchange.rest_faults = faults
        await world.flows()
        await world.wait_for(lambda: len(exchange.rest_spoilt) == 4)
        exchange.rest_faults = RestFaults()
        await world.recovers()
    await every_trade_is_in_silver_exactly_once()


@pytest.mark.parametrize("hours", [1, -1], ids=["ahead", "behind"])
async def test_clock_an_hour(
    world: World,
    hours: int,
    monkeypatch: pytest.MonkeyPatch,
    every_trade_is_in_silver_exactly_once: Ending,
) -> None:
    off = timedelta(hours=hours)

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + off

    for module in ("capture", "repair", "sink"):
        monkeypatch.setattr(f"ingestion.{module}.datetime", Clock)
    async with world.market() as exchange, world.capturing():
        await world.flows()
        await exchange.drop_connections()
        await world.reconnects()
        await world.recovers()
    [received] = await world.fetch(
        "select min(received_at) - now() as first, max(received_at) - now() as last "
        "from bronze.coinbase_trades_raw"
    )
    assert all(abs(ago - off) < timedelta(minutes=10) for ago in received)
    await every_trade_is_in_silver_exactly_once()


@pytest.mark.parametrize("seed", [1], ids="seed {}".format)
async def test_dbt_build_killed_at_random_moments(
    world: World,
    dbt: Dbt,
    tmp_path: Path,
    seed: int,
    every_trade_is_in_silver_exactly_once: Ending,
) -> None:
    moments, killed = random.Random(seed), 0
    lakehouse = world.lakehouse
    async with world.market(), world.capturing():
        await world.flows()
        for number in range(world.figures.dbt_kills):
            began = datetime.now(UTC)
            with build_in_another_process(lakehouse, dbt, tmp_path / str(number)) as build:
                await world.sees_dbt(began)
                await asyncio.sleep(moments.uniform(0, 3))
                build.kill()
                build.communicate()
            # A build with little to do may have been quicker.
            killed += build.returncode == -signal.SIGKILL
        await world.recovers()
    assert killed
    await asyncio.to_thread(lakehouse.build)
    incremental = await asyncio.to_thread(lakehouse.fingerprints)
    await asyncio.to_thread(lakehouse.build, "--full-refresh")
    assert await asyncio.to_thread(lakehouse.fingerprints) == incremental
    await every_trade_is_in_silver_exactly_once()
