"""What there is to know of bronze, in one query."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

import asyncpg

from warehouse.settings import ConnectionInfo, WarehouseError

# A string: the type is generic in the stubs only.
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

# Rows as PostgreSQL's statistics say: to count them would read all of bronze. What it counts as it
# goes is lost in a crash, what it estimates is as old as the last analyze.
_LOOK = """
with newest as (
    select bronze_id, received_at from bronze.coinbase_trades_raw order by bronze_id desc limit 1
),

gaps as (
    select gap_id, upper(ids) - lower(ids) as trades
    from bronze.trade_gaps
    cross join unnest(missing) as ids
    where closed_at is null and next_try_at < 'infinity'
),

last_build as (
    select coalesce(end_ts, clock_timestamp()) as built_at
    from ops.pipeline_runs
    where pipeline_name = 'build'
    order by start_ts desc
    limit 1
)

select
    (
        select sum(greatest(pg_stat_get_live_tuples(oid), reltuples))::bigint from pg_class
        where oid in (
            select inhrelid from pg_inherits
            where inhparent = 'bronze.coinbase_trades_raw'::regclass
        )
    ) as estimated_rows,
    coalesce((select bronze_id from newest), 0) as last_id,
    (select received_at from newest) as received_at,
    coalesce(
        (select high from ops.model_watermarks where model = 'bronze.coinbase_trades_raw'), 0
    ) as transformed_id,
    (select built_at from last_build) as built_at,
    coalesce(
        (select max(catalogue_id) from bronze.coinbase_products_raw), 0
    ) as catalogue_id,
    (select count(distinct gap_id) from gaps) as open_gaps,
    (select coalesce(sum(trades), 0) from gaps)::bigint as missing_trades
"""


@dataclass(frozen=True)
class Bronze:
    """How bronze stands.

    `last_id` is its newest bronze_id, and `transformed_id` the one up to which dbt has read; both
    are 0 at the beginning. `received_at` is when the newest frame came, `built_at` when the newest
    `dbt build` ended, or now while it runs. `catalogue_id` is the newest list of products, 0 where
    there is none. A gap that waits for a backfill does not count as open.
    """

    estimated_rows: int
    last_id: int
    received_at: datetime | None
    transformed_id: int
    built_at: datetime | None
    catalogue_id: int
    open_gaps: int
    missing_trades: int

    @property
    def lag(self) -> int:
        """How many frames dbt has not read."""
        return max(self.last_id - self.transformed_id, 0)


async def look_at(connection: Connection) -> Bronze:
    """Look at bronze over an open connection.

    Raises:
        WarehouseError: the database is not migrated.

    """
    try:
        row = await connection.fetchrow(_LOOK)
    except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
        raise WarehouseError("The database is not migrated. Run `medallion migrate`.") from None
    except asyncpg.InsufficientPrivilegeError as error:
        raise WarehouseError(
            f"Who transforms may not look at bronze ({error}). Set MEDALLION_TRANSFORM_PASSWORD, "
            "or PGUSER to medallion_transform."
        ) from None
    assert row is not None  # noqa: S101  (it selects from nothing, which is one row)
    return Bronze(**row)


async def look_at_bronze(connection_info: ConnectionInfo) -> Bronze:
    """Look at bronze once.

    Raises:
        WarehouseError: the database is away, or not migrated.

    """
    connection = await connection_info.connect()
    try:
        return await look_at(connection)
    finally:
        await connection.close()
