"""Migrations, roles, partitions and settling, on a real server."""

from __future__ import annotations

import asyncio
import json
import uuid
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import pytest

from tests.conftest import Database, Server
from warehouse.migrate import MIGRATIONS, migrate
from warehouse.settings import NoDatabaseError, Role, WarehouseError, WarehouseSettings

SESSION = uuid.UUID(int=1)
TRADE = (
    "insert into bronze.coinbase_trades_raw (received_at, source, channel, session_id, payload) "
    "values (now(), 'exchange_ws', 'matches', gen_random_uuid(), '{}')"
)
CANDLES = (
    "insert into bronze.coinbase_candles_raw "
    "(product_id, granularity, first_bucket, last_bucket, payload) "
    "values ('BTC-USD', 60, now(), now(), '[]')"
)
INSERT = (
    "insert into bronze.coinbase_trades_raw "
    "(received_at, source, channel, session_id, product_id, payload) "
    "values ($1, 'exchange_ws', 'matches', $2, 'BTC-USD', '{}')"
)


async def test_migrating_again_changes_nothing(database: Database) -> None:
    assert await migrate(database.settings) == []


async def test_migrations_can_be_taken_back(database: Database) -> None:
    connection = await database.connect("admin")
    downs = [
        path.read_text().split("-- migrate:down")[1] for path in sorted(MIGRATIONS.glob("*.sql"))
    ]
    async with connection.transaction():
        for down in reversed(downs):
            await connection.execute(down)
    left = await connection.fetchval(
        "select count(*) from pg_namespace where nspname in ('bronze', 'silver', 'gold', 'ops')"
    )
    await connection.close()
    assert left == 0


async def test_a_database_of_a_newer_medallion_is_refused(database: Database) -> None:
    connection = await database.connect("admin")
    await connection.execute("insert into public.schema_migrations values ('20991231000000')")
    await connection.close()
    with pytest.raises(WarehouseError, match=r"20991231000000.*Update medallion"):
        await migrate(database.settings)


async def test_a_missing_database_is_made(server: Server) -> None:
    settings = server.settings.model_copy(update={"pgdatabase": "made by migrate"})
    with pytest.raises(NoDatabaseError, match="medallion migrate"):
        await settings.connection(Role.INGEST).connect()
    assert len(await migrate(settings)) == len(list(MIGRATIONS.glob("*.sql")))
    connection = await settings.connection(Role.INGEST).connect()
    assert await connection.fetchval("show timezone") == "UTC"
    await connection.close()


async def test_a_server_that_is_away_is_named(database: Database) -> None:
    settings = WarehouseSettings(pghost="127.0.0.1", pgport=1)
    with pytest.raises(WarehouseError, match=r"can't be reached on 127\.0\.0\.1:1 .*PGHOST"):
        await migrate(settings)


async def test_a_wrong_password_is_told_without_printing_it(database: Database) -> None:
    settings = WarehouseSettings(
        pghost="127.0.0.1",
        pgport=database.port,
        pguser="postgres",
        pgpassword="not the one",
        medallion_home=database.settings.medallion_home / "elsewhere",
    )
    with pytest.raises(WarehouseError, match="PGPASSWORD") as caught:
        await migrate(settings)
    assert "not the one" not in str(caught.value)


def test_the_credentials_are_for_their_owner_alone(server: Server) -> None:
    assert server.settings.credentials_file.stat().st_mode & 0o777 == 0o600


async def test_a_role_that_a_newer_medallion_brings_gets_its_password(
    server: Server, database: Database
) -> None:
    credentials = json.loads(server.settings.credentials_file.read_text())
    del credentials["passwords"]["medallion_archive"]
    server.settings.credentials_file.write_text(json.dumps(credentials))
    with pytest.raises(WarehouseError, match="medallion migrate"):
        await database.connect("medallion_archive")
    server.embedded.start()
    await migrate(database.settings)
    connection = await database.connect("medallion_archive")
    await connection.close()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_damaged_credentials_are_told(tmp_path: Path, content: str) -> None:
    settings = WarehouseSettings(medallion_home=tmp_path)
    settings.credentials_file.write_text(content)
    with pytest.raises(WarehouseError, match="is damaged"):
        settings.connection(Role.READER)


async def test_the_server_listens_on_loopback_only_and_wants_passwords(
    database: Database,
) -> None:
    connection = await database.connect("admin")
    assert await connection.fetchval("show listen_addresses") == "127.0.0.1"
    methods = await connection.fetch("select distinct auth_method from pg_hba_file_rules")
    await connection.close()
    assert [row["auth_method"] for row in methods] == ["scram-sha-256"]


@pytest.mark.parametrize(
    "table",
    [
        "coinbase_trades_raw",
        "coinbase_trades_raw_default",
        "coinbase_candles_raw",
        "coinbase_products_raw",
    ],
)
@pytest.mark.parametrize(
    "change", ["update {} set received_at = now()", "delete from {}", "truncate {}"]
)
async def test_bronze_refuses_changes_even_to_its_owner(
    database: Database, table: str, change: str
) -> None:
    connection = await database.connect("admin")
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="bronze is append-only"):
        await connection.execute(change.format(f"bronze.{table}"))
    await connection.close()


async def test_rows_land_in_the_partition_of_their_day(database: Database) -> None:
    connection = await database.connect("medallion_ingest")
    today = datetime.now(UTC)
    for received_at in (today, datetime(2020, 2, 29, tzinfo=UTC)):
        await connection.execute(INSERT, received_at, SESSION)
    partitions = await connection.fetch(
        "select tableoid::regclass::text as name from bronze.coinbase_trades_raw order by bronze_id"
    )
    assert [row["name"] for row in partitions] == [
        f"bronze.coinbase_trades_raw_{today:%Y%m%d}",
        "bronze.coinbase_trades_raw_default",
    ]
    assert await connection.fetchval("select bronze.make_partitions()") == 0
    assert await connection.fetchval("select bronze.make_partitions(9)") == 2
    await connection.close()


@pytest.mark.parametrize("insert", [TRADE, CANDLES], ids=["trades", "candles"])
async def test_settling_waits_for_the_batches_in_flight(database: Database, insert: str) -> None:
    writer = await database.connect("medallion_ingest")
    reader = await database.connect("medallion_transform")
    transaction = writer.transaction()
    await transaction.start()
    await writer.execute(insert)
    settling = asyncio.create_task(reader.fetchval("select bronze.settle()"))
    await asyncio.sleep(0.3)
    assert not settling.done()
    await transaction.commit()
    assert await settling == 1
    await writer.close()
    await reader.close()
