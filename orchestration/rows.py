"""How many rows a table has, as far as that is cheap to know."""

from __future__ import annotations

from typing import Final

from dagster import AssetKey

from warehouse.settings import ConnectionInfo

COUNTED_BELOW: Final = 1_000_000
"""From here on PostgreSQL's statistics do: to count takes time that grows with the table."""


async def row_count(connection_info: ConnectionInfo, table: AssetKey) -> int:
    """Return the rows of a table: exact below a million."""
    name = ".".join(table.path)
    connection = await connection_info.connect()
    try:
        estimate: float = await connection.fetchval(
            "select reltuples from pg_class where oid = $1::text::regclass", name
        )
        if estimate >= COUNTED_BELOW:
            return int(estimate)
        count: int = await connection.fetchval(f"select count(*) from {name}")  # noqa: S608
        return count
    finally:
        await connection.close()
