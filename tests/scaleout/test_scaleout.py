"""The same project on Citus: the same rows to the hash, made where they lie, and none lost."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import psycopg2
import pytest

from ingestion.bronze import BronzeWriter
from ingestion.coinbase.wire import MARKET_TRADES_CHANNEL
from ingestion.spool import Spool
from simulator.faults import Faults
from tests.dbt.conftest import NOON, Dbt, Lakehouse, advanced_frame, match, product
from tests.dbt.test_runs import build_in_another_process
from tests.faults.world import SHORT, World, compared
from tests.scaleout.conftest import Citus
from warehouse.migrate import migrate
from warehouse.settings import LOGIN_ROLES

pytestmark = [pytest.mark.postgres18_only, pytest.mark.timeout(600)]

BRONZE = (
    "coinbase_trades_raw",
    "coinbase_candles_raw",
    "coinbase_products_raw",
    "trade_gaps",
    "trade_coverage",
)
# What the two databases' runs made at the same market time; they began at times of their own.
NEWEST_MOVERS = """
    select to_jsonb(movers) - 'snapshot_ts' as mover from gold.top_movers as movers
    where as_of = (select max(as_of) from gold.top_movers)
    order by period, rank, product_id
"""
# A node that comes back is told every minute what became of what it had promised.
FINISH_PROMISED = "select recover_prepared_transactions()"
NOT_PUSHED_DOWN = {"top_movers": "ranks all products", "coinbase_trades_quarantine": "is a copy"}
FROM_THE_COORDINATOR = {
    "coinbase_candles": "the exchange's answers are few, and lie there",
    "products": "so are its catalogues",
}


async def _copied_bronze(source: Lakehouse, target: Lakehouse) -> None:
    """Give the one database the bronze of the other, row by row."""
    reader = await source.database.connect("admin")
    writer = await target.database.connect("admin")
    try:
        for table in BRONZE:
            columns = [
                row["attname"]
                for row in await writer.fetch(
                    "select attname from pg_attribute where attrelid = $1::text::regclass "
                    "and attnum > 0 and attgenerated = '' and not attisdropped",
                    f"bronze.{table}",
                )
            ]
            names = ", ".join(columns)
            rows = await reader.fetch(f"select ({names})::text from bronze.{table}")
            record = f"select {names} from bronze.{table} where false"
            await writer.execute(f"create temp table copied as {record}")
            await writer.executemany(
                "insert into copied select ($1::text::copied).*",
                [(row["row"],) for row in rows],
            )
            await writer.execute(
                f"insert into bronze.{table} ({names}) "
                f"overriding system value select {names} from copied order by 1; drop table copied"
            )
        await writer.execute(
            "select setval(pg_get_serial_sequence('bronze.coinbase_trades_raw', 'bronze_id'), "
            "(select max(bronze_id) from (select bronze_id from bronze.coinbase_trades_raw "
            "union all select bronze_id from bronze.coinbase_candles_raw) as numbered))"
        )
    finally:
        await reader.close()
        await writer.close()


def assert_equal_to_plain_postgres(spread: Lakehouse, plain: Lakehouse) -> None:
    """Build the same bronze on plain PostgreSQL, and compare every table to the hash."""
    asyncio.run(_copied_bronze(spread, plain))
    plain.build()
    expected = plain.fingerprints()
    assert len(expected) == 16
    assert spread.fingerprints() == expected
    assert spread.rows(NEWEST_MOVERS) == plain.rows(NEWEST_MOVERS)


def test_migrating_spreads_bronze_and_again_changes_nothing(citus: Citus) -> None:
    database = citus.fresh_database()
    assert asyncio.run(migrate(database.settings)) == []
    tables = database.fetch(
        "select table_name::text, distribution_column from citus_tables "
        "where table_name::text !~ '_([0-9]{8}|default)$'"
    )
    assert [tuple(row) for row in tables] == [("bronze.coinbase_trades_raw", "product_id")]
    assert database.fetch("select bronze.make_partitions(9)", role="medallion_ingest")[0][0] == 2


def test_no_role_can_change_what_bronze_holds(spread: Lakehouse) -> None:
    spread.receive(match(1))
    for role in LOGIN_ROLES:
        for table in ("bronze.coinbase_trades_raw", "bronze.coinbase_trades_raw_default"):
            for change in (
                f"update {table} set source = 'rest'",
                f"delete from {table}",
                f"truncate {table}",
            ):
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    spread.database.execute(change, role=role.value)
    assert spread.one("select source from bronze.coinbase_trades_raw")["source"] == "exchange_ws"


async def test_the_whole_way_ends_in_the_same_rows(
    world: World, lakehouse: Lakehouse, citus_dbt: Dbt, tmp_path: Path
) -> None:
    spread = world.lakehouse
    faults = Faults(
        dropped=0.01, duplicates=0.05, late=0.05, late_by=timedelta(minutes=20), malformed=0.01
    )
    killed = 0
    async with (
        # Two ingesters and a cluster share the cores with the exchange.
        world.market(faults=faults, speed=SHORT.speed / 4) as exchange,
        world.capturing(),
        world.capturing(spool_dir=tmp_path / "other"),
    ):
        await world.flows()
        await asyncio.to_thread(spread.build)
        for number in range(2):
            began = datetime.now(UTC)
            with build_in_another_process(spread, citus_dbt, tmp_path / str(number)) as build:
                await world.sees_dbt(began)
                await asyncio.sleep(number)
                build.kill()
                build.communicate()
            killed += build.returncode == -signal.SIGKILL
        await world.recovers()
    assert killed
    await asyncio.to_thread(spread.build)
    incremental = await asyncio.to_thread(spread.fingerprints)
    await asyncio.to_thread(assert_equal_to_plain_postgres, spread, lakehouse)
    await asyncio.to_thread(spread.build, "--full-refresh")
    assert await asyncio.to_thread(spread.fingerprints) == incremental
    await asyncio.to_thread(spread.build, "--selector", "full")
    sent = exchange.status()
    assert min(sent.dropped, sent.duplicates, sent.late, sent.malformed) > 10
    silver = await asyncio.to_thread(world.in_silver)
    assert sorted(silver) == sorted(world.listed())


def test_a_frame_of_several_products_reaches_each_of_them(
    spread: Lakehouse, lakehouse: Lakehouse, tmp_path: Path
) -> None:
    nameless = match(3) | {"product_id": 7}
    frames = [
        advanced_frame(match(1), match(2, product_id="ETH-USD"), nameless),
        advanced_frame(match(4), match(5)),
        advanced_frame(),
    ]

    async def put() -> None:
        writer = BronzeWriter(
            spread.database.info("medallion_ingest").open,
            Spool(tmp_path / "spool", max_bytes=1_000_000),
            batch_size=100,
            flush_interval=0.01,
            max_buffered=100,
        )
        await writer.open()
        for frame in frames:
            raw = json.dumps(frame).encode()
            row = (datetime.now(UTC), "advanced_ws", MARKET_TRADES_CHANNEL, uuid.uuid4(), None, raw)
            writer.put(row)
        writer.finish()
        await writer.run()
        assert writer.done == len(frames)

    asyncio.run(put())
    # Of a minute at the end of the recording nobody knows whether it is whole: they may differ.
    spread.answer(NOON, NOON, [int(NOON.timestamp()), 99, 101, 100, 100, 5])
    spread.list_products(product("BTC-USD", quote_increment="0.03"), product("ETH-USD"))
    spread.build()
    assert spread.one("select count(*) as n from gold.off_increment_trades") == {"n": 3}
    assert spread.one("select verdict from gold.candle_reconciliation") == {"verdict": "differs"}
    silver = spread.rows("select product_id, trade_id from silver.coinbase_trades order by 2")
    assert [tuple(row.values()) for row in silver] == [
        ("BTC-USD", 1),
        ("ETH-USD", 2),
        ("BTC-USD", 4),
        ("BTC-USD", 5),
    ]
    reasons = spread.rows(
        "select reject_reasons[1] as reason from silver.coinbase_trades_quarantine"
    )
    assert {row["reason"] for row in reasons} == {"invalid_product_id", "missing_product_id"}
    assert_equal_to_plain_postgres(spread, lakehouse)


def plans(spread: Lakehouse, dbt: Dbt, *names: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield, for each model, how its statement would run on the last window."""
    with (
        closing(psycopg2.connect(spread.transform.url())) as connection,
        connection.cursor() as cursor,
    ):
        for name in names:
            (node,) = (node for node in dbt.manifest.nodes.values() if node.name == name)
            (compiled,) = dbt.target.glob(f"compiled/**/{name}.sql")
            cursor.execute("set local medallion.window_low = '1'")
            cursor.execute("set local medallion.window_high = '100'")
            cursor.execute(f"create temporary view {name}_new as {compiled.read_text()}")
            columns = ", ".join(node.columns)
            cursor.execute(
                f"explain (format json) insert into {node.schema}.{name} ({columns}) "
                f"select {columns} from {name}_new"
            )
            yield name, cursor.fetchall()[0][0][0]
            connection.rollback()


def test_each_model_runs_where_its_rows_lie(spread: Lakehouse, citus_dbt: Dbt) -> None:
    spread.receive(*(match(n, product_id=f"{n % 5}-USD") for n in range(1, 50)))
    shutil.rmtree(citus_dbt.target / "compiled", ignore_errors=True)
    build = spread.build()
    models = {
        node.name
        for node in citus_dbt.manifest.nodes.values()
        if node.name in build.statuses and node.config.materialized == "incremental"
    }
    assert models > {*NOT_PUSHED_DOWN, *FROM_THE_COORDINATOR}
    for name, found in plans(spread, citus_dbt, *models):
        plan = found["Plan"]
        text = json.dumps(found)
        if name in NOT_PUSHED_DOWN:
            # What comes to the coordinator has been put together on the shards.
            assert plan["Custom Plan Provider"] == "Citus INSERT ... SELECT", name
            assert "Task Count" in text, name
        elif name in FROM_THE_COORDINATOR:
            assert plan["Custom Plan Provider"] == "Citus INSERT ... SELECT", name
        else:
            assert plan["Custom Plan Provider"] == "Citus Adaptive", name
            assert '"Subplans":' not in text, name
            assert plan["Distributed Query"]["Job"]["Task Count"] > 1, name


def test_a_window_reaches_the_workers(spread: Lakehouse) -> None:
    spread.receive(*(match(n, product_id=f"{n % 5}-USD") for n in range(1, 50)))
    spread.build()
    with (
        closing(psycopg2.connect(spread.transform.url())) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("set local medallion.window_low = '40'")
        cursor.execute(
            "select count(*) from silver.coinbase_trades "
            "where bronze_id > current_setting('medallion.window_low')::bigint"
        )
        assert cursor.fetchall() == [(9,)]


def test_a_query_for_one_product_asks_one_shard(spread: Lakehouse) -> None:
    spread.receive(*(match(n, product_id=f"{n % 5}-USD") for n in range(1, 50)))
    spread.build()
    for table in ("silver.coinbase_trades", "gold.ohlc_1m", "gold.daily_kpis"):
        (plan,) = spread.database.fetch(
            f"explain (format json) select * from {table} where product_id = '3-USD'"
        )
        job = json.loads(plan[0])[0]["Plan"]["Distributed Query"]["Job"]
        assert job["Task Count"] == 1, table


def test_settling_waits_for_a_batch_that_a_worker_has_only_promised(
    spread: Lakehouse, citus: Citus
) -> None:
    node = replace(citus.workers[0].info, database="crypto_dw")

    async def run() -> None:
        worker = await node.open()
        transform = await spread.database.connect("medallion_transform")
        await worker.execute("begin; create table promised (); prepare transaction 'citus_0_1_2_3'")
        try:
            settling = asyncio.create_task(transform.fetchval("select bronze.settle()"))
            await asyncio.sleep(1)
            waited = not settling.done()
        finally:
            await worker.execute("rollback prepared 'citus_0_1_2_3'")
        assert await settling == 0
        assert waited
        await worker.close()
        await transform.close()

    asyncio.run(run())


async def test_worker_killed_in_the_middle_of_a_copy(world: World, citus: Citus) -> None:
    worker = citus.workers[0]
    async with world.market(), world.capturing() as capture:
        await world.flows()
        command = worker.kill()
        await asyncio.sleep(2)
        saved = capture.stats.rows
        await asyncio.to_thread(worker.start, command)
        await world.fetch(FINISH_PROMISED)
        await world.wait_for(lambda: capture.stats.rows > saved)
        await world.recovers()
    await asyncio.to_thread(world.build_silver)
    assert await asyncio.to_thread(compared, world, "worker killed")


def test_worker_killed_in_the_middle_of_a_build(
    spread: Lakehouse, lakehouse: Lakehouse, citus: Citus, citus_dbt: Dbt, tmp_path: Path
) -> None:
    many = [match(n, product_id=f"{n % 7}-USD", at=n) for n in range(1, 3000)]
    spread.receive(*many[:2000])
    spread.build()
    spread.receive(*many[2000:])
    worker = citus.workers[0]
    with build_in_another_process(spread, citus_dbt, tmp_path / "killed") as build:
        until = time.monotonic() + 60
        while not spread.rows("select from ops.pipeline_runs where status = 'running'"):
            assert time.monotonic() < until
            time.sleep(0.01)
        command = worker.kill()
        said, _ = build.communicate()
    worker.start(command)
    assert build.returncode != 0, said
    spread.rows(FINISH_PROMISED)
    spread.build()
    assert_equal_to_plain_postgres(spread, lakehouse)
