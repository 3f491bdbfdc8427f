"""What it costs to make silver and gold anew from bronze, beside the reference and DuckDB."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Final

import duckdb

from benchmarks.history import Connection, History
from benchmarks.increment import Cost, cost
from benchmarks.measure import interleaved, middle, table, tell
from benchmarks.reference import ABSENT, Reference, given
from warehouse.settings import Role

THREADS: Final = 2

# The text of rows of bronze, in the form of the archive (warehouse/parquet.py).
_EXPORT: Final = """
select bronze_id, received_at, source, channel, session_id, product_id, payload
from bronze.coinbase_trades_raw
"""
_TO_PARQUET: Final = """
copy (
    select * from read_csv(
        '{csv}', header = false, columns = {{
            'bronze_id': 'bigint', 'received_at': 'timestamptz', 'source': 'varchar',
            'channel': 'varchar', 'session_id': 'varchar', 'product_id': 'varchar',
            'payload': 'varchar'
        }}
    )
) to '{parquet}' (compression zstd)
"""
# Trades typed and each of them once, candles of all lengths: what silver and ohlc_* hold.
_FLOOR: Final = """
create or replace table trades as
select
    product_id,
    (payload ->> 'trade_id')::bigint as trade_id,
    (payload ->> 'time')::timestamptz as trade_time,
    (payload ->> 'price')::decimal(28, 8) as price,
    (payload ->> 'size')::decimal(28, 8) as size,
    payload ->> 'side' as side,
    payload ->> 'maker_order_id' as maker_order_id,
    payload ->> 'taker_order_id' as taker_order_id,
    source,
    received_at,
    bronze_id
from read_parquet('{parquet}')
where payload ->> 'price' is not null
qualify row_number() over (partition by product_id, trade_id order by bronze_id) = 1;

create or replace table ohlc_1m as
select
    product_id,
    time_bucket(interval '1 minute', trade_time) as bucket,
    arg_min(price, (trade_time, trade_id)) as open,
    max(price) as high,
    min(price) as low,
    arg_max(price, (trade_time, trade_id)) as close,
    sum(size) as volume,
    sum(price::double * size::double) as quote_volume,
    count(*) as trade_count,
    sum(size) filter (where side = 'sell') as taker_buy_volume,
    min(trade_id) as first_trade_id,
    max(trade_id) as last_trade_id,
    count(*) filter (where source = 'rest') as repaired_count,
    max(bronze_id) as bronze_id
from trades
group by all;
"""
_ROLL_UP: Final = """
create or replace table ohlc_{name} as
select
    product_id,
    time_bucket(interval '{name}', bucket) as bucket,
    arg_min(open, bucket) as open,
    max(high) as high,
    min(low) as low,
    arg_max(close, bucket) as close,
    sum(volume) as volume,
    sum(quote_volume) as quote_volume,
    sum(trade_count) as trade_count,
    sum(taker_buy_volume) as taker_buy_volume,
    min(first_trade_id) as first_trade_id,
    max(last_trade_id) as last_trade_id,
    sum(repaired_count) as repaired_count,
    max(bronze_id) as bronze_id
from ohlc_{parts}
group by product_id, time_bucket(interval '{name}', bucket);
"""
_SUMS: Final = """
select
    count(*), sum(trade_count)::bigint, sum(volume), sum(open), sum(high), sum(low), sum(close),
    sum(taker_buy_volume)
from ohlc_1d
"""
_LENGTHS: Final = ("1m", "5m", "15m", "1h", "6h", "1d")


def export(history: History, folder: Path) -> Path:
    """Write bronze to a Parquet file."""
    csv, parquet = folder / "bronze.csv", folder / "bronze.parquet"

    async def copy(connection: Connection) -> None:
        await connection.copy_from_query(_EXPORT, output=csv, format="csv")

    history.ask(copy)
    with duckdb.connect(config={"threads": THREADS}) as connection:
        connection.execute(_TO_PARQUET.format(csv=csv, parquet=parquet))
    csv.unlink()
    return parquet


def floor(parquet: Path) -> tuple[Cost, tuple[object, ...]]:
    """Make trades and candles of the file with DuckDB; return the cost, and the day's sums."""
    statements = _FLOOR.format(parquet=parquet) + "".join(
        _ROLL_UP.format(name=name, parts=parts) for parts, name in pairwise(_LENGTHS)
    )
    with duckdb.connect(config={"threads": THREADS}) as connection:
        cpu, began = time.process_time(), time.monotonic()
        connection.execute(statements)
        spent = Cost(time.process_time() - cpu, time.monotonic() - began)
        (sums,) = connection.execute(_SUMS).fetchall()
    return spent, sums


def compare(history: History, parquet: Path) -> None:
    """Look whether DuckDB makes the same candles of a day.

    Raises:
        SystemExit: it does not.

    """
    ours = tuple(history.fetch(_SUMS.replace("ohlc_1d", "gold.ohlc_1d"))[0])
    theirs = floor(parquet)[1]
    if ours != theirs:
        raise SystemExit(f"Candles differ: medallion's are {ours}, DuckDB's {theirs}.")


def section(history: History, folder: Path, rounds: int) -> str:
    """Measure full refreshes in turn with the reference's SQL, if it is given, and the floor."""
    parquet = export(history, folder)
    reference = given(history.settings)
    trades = history.fetch("select count(*) from bronze.coinbase_trades_raw")[0][0]
    contenders: dict[str, Callable[[], Cost]] = {
        "medallion": lambda: cost(history, lambda: history.dbt("run", "--full-refresh")),
        "floor": lambda: floor(parquet)[0],
    }
    if reference:
        tell(f"the reference takes {reference.take(history.settings.connection(Role.ADMIN)):,}")
        contenders["reference"] = lambda: by_reference(history, reference)
    measured = interleaved(rounds, contenders)
    compare(history, parquet)
    names = {
        "medallion": "`dbt run --full-refresh`: silver and gold",
        "reference": "the SQL of the reference: silver, candles of 1m and 1h, KPIs, movers",
        "floor": f"DuckDB, {THREADS} threads, from Parquet: trades and candles of all lengths",
    }
    rows = [
        [
            names[name],
            middle([each.wall for each in costs], ",.1f"),
            middle([each.cpu for each in costs], ",.1f"),
        ]
        for name, costs in measured.items()
    ]
    wall = {name: median(each.wall for each in costs) for name, costs in measured.items()}
    compared = f"DuckDB takes {wall['floor'] / wall['medallion']:.0%} of our time."
    if reference:
        compared += f" The reference takes {wall['reference'] / wall['medallion']:.1f} times ours."
    else:
        compared += f" {ABSENT}"
    return (
        "### Rebuild\n\n"
        f"Silver and gold anew from {trades:,} rows of bronze, {rounds} rounds. DuckDB keeps what "
        "it makes in memory, without a key or an index; its candles of a day have the same sums "
        "as ours.\n\n" + table(["", "s by the clock", "CPU s"], rows) + f"\n\n{compared}"
    )


def by_reference(history: History, reference: Reference) -> Cost:
    """Return what the reference's SQL costs, with nothing in its silver and gold before."""

    async def empty() -> None:
        connection = await reference.info.connect()
        try:
            tables = await connection.fetchval(
                "select string_agg(format('%I.%I', schemaname, tablename), ', ') "
                "from pg_tables where schemaname in ('silver', 'gold')"
            )
            await connection.execute(f"truncate {tables}")
            await connection.execute("vacuum analyze")
        finally:
            await connection.close()

    asyncio.run(empty())
    return cost(history, reference.transform)
