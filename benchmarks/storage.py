"""Bytes per trade, and which indexes a whole run has used."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable
from typing import Final

from benchmarks.history import History
from benchmarks.measure import table
from warehouse.settings import Role, WarehouseSettings

SHOWN_BYTES: Final = 0.1
"""A table with less per trade is left out, but not of the sums."""

# Of a partitioned table, all partitions together.
_SIZES: Final = """
select
    coalesce(pg_partition_root(oid), oid)::regclass::text as name,
    sum(pg_table_size(oid))::bigint as rows,
    sum(pg_indexes_size(oid))::bigint as indexes
from pg_class
where relkind = 'r' and relnamespace::regnamespace::text in ('bronze', 'silver', 'gold')
group by 1
order by
    array_position(
        array['bronze', 'silver', 'gold'],
        split_part(coalesce(pg_partition_root(oid), oid)::regclass::text, '.', 1)
    ),
    2 desc
"""
# Without its name, which dbt draws anew for each.
_SCANS: Final = """
select
    coalesce(pg_partition_root(relid), relid)::regclass::text as name,
    substring(
        pg_get_indexdef(coalesce(pg_partition_root(indexrelid), indexrelid)) from 'USING (.*)'
    ) as columns,
    bool_or(indisunique) as is_guard,
    sum(idx_scan)::bigint as scans
from pg_stat_user_indexes
inner join pg_index using (indexrelid)
where schemaname in ('bronze', 'silver', 'gold', 'ops')
group by 1, 2
order by 1, 2
"""


def sizes(history: History) -> str:
    """Return a table of the bytes per trade."""
    found = history.fetch(_SIZES)
    ((trades,),) = history.fetch("select count(*) from silver.coinbase_trades")
    rows: list[list[str]] = []
    layers: dict[str, int] = defaultdict(int)
    for name, of_rows, of_indexes in found:
        per_trade = [of_rows / trades, of_indexes / trades]
        layers[name.partition(".")[0]] += of_rows + of_indexes
        if sum(per_trade) >= SHOWN_BYTES:
            rows.append([f"`{name}`", *(f"{each:,.1f}" for each in per_trade)])
    together = ", ".join(f"{size / trades:,.0f} of {layer}" for layer, size in layers.items())
    return f"Bytes of {trades:,} trades, each: {together}, indexes included.\n\n" + table(
        ["bytes per trade", "rows", "indexes"], rows
    )


def scans(databases: Iterable[WarehouseSettings]) -> str:
    """Return a table of all indexes and how often queries have used them, in all databases."""

    async def read() -> None:
        for database in databases:
            connection = await database.connection(Role.ADMIN).connect()
            try:
                for name, columns, is_guard, scans in await connection.fetch(_SCANS):
                    guards[name, columns] = is_guard
                    used[name, columns] += scans
            finally:
                await connection.close()

    guards: dict[tuple[str, str], bool] = {}
    used: dict[tuple[str, str], int] = defaultdict(int)
    asyncio.run(read())
    unused = [index for index, scans in used.items() if not scans and not guards[index]]
    told = ", ".join(f"{name} {columns}" for name, columns in unused) or "none"
    rows = [
        [f"`{name}`", columns, "guards" if guards[name, columns] else "", f"{scans:,}"]
        for (name, columns), scans in sorted(used.items())
    ]
    return (
        f"Indexes that no query has used and that guard nothing: {told}.\n\n"
        "<details><summary>All indexes</summary>\n\n"
        + table(["of", "index", "", "scans"], rows)
        + "\n\n</details>"
    )


def section(history: History, databases: Iterable[WarehouseSettings]) -> str:
    """Return sizes of one history, and the use of indexes in all databases of the run."""
    return f"### Storage\n\n{sizes(history)}\n\n{scans(databases)}"
