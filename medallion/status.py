"""How full each table is, how new, and how far behind bronze."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from warehouse.settings import ConnectionInfo, WarehouseError

# Where the newest entry of a table is told by another column than its time of arrival. Each can be
# read from an index, for the tables grow without bound.
NEWEST = {
    "bronze.coinbase_trades_raw": "select received_at from {} order by bronze_id desc limit 1",
    "bronze.coinbase_frames_rejected": (
        "select received_at from {} order by rejected_id desc limit 1"
    ),
    "bronze.coinbase_candles_raw": "select received_at from {} order by bronze_id desc limit 1",
    "bronze.coinbase_products_raw": (
        "select received_at from {} order by catalogue_id desc limit 1"
    ),
    "silver.coinbase_trades": (
        "select max(trade_time) from "
        "(select trade_time from {} order by bronze_id desc limit 1000) as newest"
    ),
    "silver.coinbase_trades_quarantine": (
        "select received_at from {} order by bronze_id desc limit 1"
    ),
    "silver.coinbase_candles": "select received_at from {} order by bronze_id desc limit 1",
    "gold.ohlc_1m": "select max(bucket_1m) from {}",
    "gold.ohlc_5m": "select max(bucket_5m) from {}",
    "gold.ohlc_15m": "select max(bucket_15m) from {}",
    "gold.ohlc_1h": "select max(bucket_1h) from {}",
    "gold.ohlc_6h": "select max(bucket_6h) from {}",
    "gold.ohlc_1d": "select max(bucket_1d) from {}",
    "gold.daily_kpis": "select max(day)::timestamptz from {}",
    "gold.trade_completeness": "select max(day)::timestamptz from {}",
    "gold.candle_reconciliation": "select max(bucket) from {}",
    "gold.top_movers": "select max(snapshot_ts) from {}",
    "gold.off_increment_trades": "select trade_time from {} order by bronze_id desc limit 1",
    "gold.dim_products": "select max(changed_at) from {}",
}
COUNTED_BELOW = 1_000_000


@dataclass(frozen=True)
class TableStatus:
    """One table.

    `rows` is exact below a million, else what PostgreSQL's statistics say (`estimated`). `newest`
    is the time of its newest entry. `lag` is how many frames of bronze it has not read; None where
    dbt has not built it, or where it is not built from trades.
    """

    name: str
    rows: int | None
    estimated: bool
    newest: datetime | None
    lag: int | None

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON can say it."""
        return asdict(self) | {"newest": self.newest.isoformat() if self.newest else None}


async def read_status(connection_info: ConnectionInfo) -> list[TableStatus]:
    """Read the status of every table.

    Raises:
        WarehouseError: the database is away, or not migrated.

    """
    connection = await connection_info.connect()
    try:
        if await connection.fetchval("select to_regclass('ops.model_watermarks')") is None:
            raise WarehouseError(
                f"The database {connection_info.database!r} is not migrated. "
                "Run `medallion migrate`."
            )
        watermarks: dict[str, int] = {
            row["model"]: row["high"]
            for row in await connection.fetch("select model, high from ops.model_watermarks")
        }
        arrived = await connection.fetchval(
            "select coalesce(max(bronze_id), 0) from bronze.coinbase_trades_raw"
        )
        tables = []
        for name, newest in NEWEST.items():
            estimate = await connection.fetchval(
                "select sum(greatest(reltuples, 0))::bigint from pg_class where oid in "
                "(select to_regclass($1) union select inhrelid from pg_inherits "
                "where inhparent = to_regclass($1))",
                name,
            )
            if estimate is None:
                tables.append(TableStatus(name, None, False, None, None))
                continue
            estimated = estimate >= COUNTED_BELOW
            rows = estimate if estimated else await connection.fetchval(_COUNT.format(name))
            lag: int | None = 0
            if not name.startswith("bronze"):
                # Candles of the exchange are numbered with the trades, and may be newer.
                lag = max(arrived - watermarks[name], 0) if name in watermarks else None
            newest_entry = await connection.fetchval(newest.format(name))
            tables.append(TableStatus(name, rows, estimated, newest_entry, lag))
        return tables
    finally:
        await connection.close()


_COUNT = "select count(*) from {}"


def show_status(console: Console, tables: list[TableStatus]) -> None:
    """Print the status as a table."""
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        caption="times in UTC; lag in frames of bronze that it has not read",
    )
    table.add_column("table", no_wrap=True)
    table.add_column("rows", justify="right")
    table.add_column("newest", no_wrap=True)
    table.add_column("age", justify="right", no_wrap=True)
    table.add_column("lag", justify="right")
    now = datetime.now(UTC)
    for row in tables:
        if row.rows is None:
            table.add_row(row.name, "-", "not built: run `dbt build`", style="dim")
            continue
        newest = row.newest.strftime("%Y-%m-%d %H:%M") if row.newest else "-"
        age = _age((now - row.newest).total_seconds()) if row.newest else "-"
        rows = f"{'about ' if row.estimated else ''}{row.rows:,}"
        lag = "-" if row.lag is None else f"{row.lag:,}"
        table.add_row(row.name, rows, newest, age, lag)
    console.print(table)


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
