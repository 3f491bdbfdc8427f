"""Each role may do its work, and nothing besides: everything else is tried, and refused."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import AsyncIterator
from fnmatch import fnmatch
from typing import TypeAlias

import asyncpg
import pytest

from tests.conftest import Server
from tests.dbt.conftest import Dbt, Lakehouse, match

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

pytestmark = pytest.mark.postgres18_only

TRIED = {
    "select": "select from {table}",
    "insert": "insert into {table} default values",
    "update": "update {table} set {column} = default where false",
    "delete": "delete from {table} where false",
    "truncate": "truncate {table}",
}
# What a role may do to tables that are not its own. A partition counts as its table.
RIGHTS = {
    "medallion_ingest": {
        "bronze.coinbase_*": {"select", "insert"},
        "bronze.feed_sessions": {"select", "insert", "update"},
        "bronze.trade_gaps": {"select", "insert", "update"},
        "bronze.trade_coverage": {"select", "insert", "update"},
        "schema_migrations": {"select"},
    },
    "medallion_transform": {"bronze.*": {"select"}},
    "medallion_reader": {
        "gold.*": {"select"},
        "ops.pipeline_runs": {"select"},
        "ops.dq_check_results": {"select"},
        "ops.dq_check_hours": {"select"},
        "ops.feed_sessions": {"select"},
        "ops.layers": {"select"},
        "ops.quarantined_trades": {"select"},
        "ops.trade_arrivals": {"select"},
        "ops.trade_gaps": {"select"},
    },
    "medallion_archive": {
        "bronze.coinbase_trades_raw": {"select"},
        "bronze.archive_files": {"select", "insert", "update"},
    },
}
FUNCTIONS = {
    "medallion_ingest": {"bronze.make_partitions"},
    "medallion_transform": {
        "bronze.settle", "bronze.is_timestamp", "bronze.trades_in_frame",
        "bronze.require_whole_history", "ops.begin_run",
    },
    "medallion_reader": {"bronze.is_timestamp", "bronze.trades_in_frame"},
    "medallion_archive": {
        "bronze.make_day_table", "bronze.attach_day", "bronze.drop_day", "bronze.checked_id"
    },
}  # fmt: skip
PARTITION = re.compile(r"_raw_(default|\d{8})$")
REFUSED_TO_ALL = (
    "create table bronze.x (y int)",
    "create table public.x (y int)",
    "create schema x",
    "create database x",
    "create role x",
    "set role medallion_owner",
    "set session authorization postgres",
    "alter role medallion_reader superuser",
    "alter role medallion_owner password 'x'",
    "alter database crypto_dw set jit to on",
    "alter system set fsync = off",
    "alter table bronze.coinbase_trades_raw disable trigger append_only",
    "drop table bronze.coinbase_trades_raw",
    "set session_replication_role = replica",
    "select pg_read_file('PG_VERSION')",
    "select pg_ls_dir('.')",
    "select lo_import('PG_VERSION')",
    "select lo_from_bytea(0, 'x')",
    "copy bronze.coinbase_trades_raw from program 'true'",
    "copy (select) to program 'true'",
    "copy (select) to '/dev/null'",
    "select rolpassword from pg_authid",
    "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'postgres'",
    "select setval('bronze.coinbase_trades_raw_bronze_id_seq', 1)",
)
REFUSED = {
    "medallion_ingest": (
        "create table silver.x (y int)",
        "create temp table x (y int)",
        "update bronze.feed_sessions set url = 'x'",
        "insert into bronze.coinbase_candles_raw (bronze_id) values (1)",
    ),
    "medallion_transform": (
        "do $$ begin lock table bronze.coinbase_trades_raw in share mode; end $$",
        "select nextval('bronze.coinbase_trades_raw_bronze_id_seq')",
    ),
    "medallion_reader": (
        "create table gold.x (y int)",
        "create temp table x (y int)",
        "create view gold.ours as select 1",
    ),
    "medallion_archive": (
        "create temp table x (y int)",
        "update bronze.archive_files set dropped_at = now()",
        "select nextval('bronze.coinbase_trades_raw_bronze_id_seq')",
    ),
}


@pytest.fixture(scope="module")
def house(server: Server, dbt: Dbt) -> Lakehouse:
    """A lakehouse whose tables were made, and then made anew: all rights must be there again."""
    lakehouse = Lakehouse(server.fresh_database(), dbt)
    lakehouse.receive(match(1))
    lakehouse.dbt("run")
    lakehouse.dbt("run", "--full-refresh")
    return lakehouse


@pytest.fixture
async def connection(house: Lakehouse, role: str) -> AsyncIterator[Connection]:
    opened = await house.database.connect(role)
    yield opened
    await opened.close()


async def is_allowed(connection: Connection, statement: str) -> bool:
    """Try a statement and take it back."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        await connection.execute(statement)
    except asyncpg.NotNullViolationError:
        return True  # A row without values: whether it may be written was looked at before.
    except (
        asyncpg.InsufficientPrivilegeError,
        # What nobody does to a view or to a generated column.
        asyncpg.FeatureNotSupportedError,
        asyncpg.GeneratedAlwaysError,
        asyncpg.ObjectNotInPrerequisiteStateError,
        asyncpg.WrongObjectTypeError,
    ):
        return False
    finally:
        await transaction.rollback()
    return True


@pytest.mark.parametrize("role", RIGHTS)
async def test_a_role_does_to_the_tables_of_others_what_its_work_needs_and_nothing_else(
    house: Lakehouse, connection: Connection, role: str
) -> None:
    tables = await connection.fetch(
        "select oid::regclass::text as name, array("
        "select attname::text from pg_attribute where attrelid = pg_class.oid and attnum > 0"
        ") as columns from pg_class "
        "where relkind in ('r', 'p', 'v') and relowner <> $1::text::regrole "
        "and relnamespace::regnamespace::text in ('bronze', 'silver', 'gold', 'ops', 'public')",
        role,
    )
    allowed: dict[str, set[str]] = defaultdict(set)
    expected: dict[str, set[str]] = {}
    for table in tables:
        name = PARTITION.sub("_raw", table["name"])
        for pattern, rights in RIGHTS[role].items():
            if fnmatch(name, pattern):
                expected[name] = rights
        for right, statement in TRIED.items():
            for column in table["columns"] if right == "update" else [""]:
                if await is_allowed(
                    connection, statement.format(table=table["name"], column=column)
                ):
                    allowed[name].add(right)
    assert allowed == expected


@pytest.mark.parametrize("role", RIGHTS)
async def test_a_role_calls_the_functions_that_its_work_needs_and_no_other(
    house: Lakehouse, connection: Connection, role: str
) -> None:
    functions = await connection.fetch(
        "select distinct pronamespace::regnamespace || '.' || proname as name from pg_proc "
        "where pronamespace::regnamespace::text in ('bronze', 'silver', 'gold', 'ops', 'public') "
        "and has_function_privilege(oid, 'execute')"
    )
    assert {function["name"] for function in functions} == FUNCTIONS[role]


@pytest.mark.parametrize("role", RIGHTS)
async def test_a_role_is_refused_what_it_must_not_do(
    house: Lakehouse, connection: Connection, role: str
) -> None:
    accepted = []
    for statement in (*REFUSED_TO_ALL, *REFUSED[role]):
        try:
            await connection.execute(statement)
        except asyncpg.InsufficientPrivilegeError:
            continue
        accepted.append(statement)
    assert accepted == []
