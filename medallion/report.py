"""What came of it: the tables at the end of the demo."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import asyncpg
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from warehouse.settings import Role, WarehouseSettings

# Each query names its columns in order of importance: a narrow terminal shows the first ones.
CANDLES = """
with newest as (select max(bucket_1m) as bucket_1m from gold.ohlc_1m)
select bucket_1m as minute, product_id as product, open, high, low, close, trade_count as trades,
       volume, vwap
from gold.ohlc_1m
where bucket_1m > (select bucket_1m from newest) - interval '3 minutes'
  and product_id in (
      select product_id from gold.top_movers
      where snapshot_ts = (select max(snapshot_ts) from gold.top_movers) and period = '24h'
      order by quote_volume desc
      limit 4
  )
order by product_id, bucket_1m
"""
KPIS = """
select product_id as product, trades, price_change_pct as "change %", close, high, low, open,
       vwap, round(100 * taker_buy_share, 1) as "taker buys %",
       round(100 * realised_volatility, 2) as "volatility %", volume, quote_volume
from gold.daily_kpis
where day = (select max(day) from gold.daily_kpis)
order by gold.daily_kpis.quote_volume desc
"""
# Cut, not rounded: 100 means that not one trade is missing.
COMPLETENESS = """
select product_id as product, sum(trades)::bigint as trades, sum(missing)::bigint as missing,
       sum(repaired)::bigint as repaired,
       trunc(100 * sum(trades) / sum(trades + missing), 4) as "complete %", min(day) as "first day"
from gold.trade_completeness
group by product_id
order by missing desc, trades desc
"""
MOVERS = """
select period, rank, product_id as product, price_change_pct as "change %", open, close,
       trade_count as trades, quote_volume
from gold.top_movers
where snapshot_ts = (select max(snapshot_ts) from gold.top_movers) and rank <= 4
order by array_position(array['1h', '24h', '7d'], period), rank
"""
CHECKS = """
select status as verdict, check_name as check, failures, details ->> 'description' as meaning
from ops.dq_check_results
where run_id = (select run_id from ops.pipeline_runs order by start_ts desc limit 1)
order by array_position(array['error', 'fail', 'warn', 'skipped', 'pass'], status), table_name, 2
"""
QUARANTINE = """
with reasons as (
    select reason, bronze_id, payload,
           payload ->> regexp_replace(reason, '^(missing|invalid|non_positive|implausible)_', '')
           as field
    from silver.coinbase_trades_quarantine
    cross join unnest(reject_reasons) as reason
)
select reason, count(*) as trades, (array_agg(field order by bronze_id desc))[1] as "newest value",
       (array_agg(payload::text order by bronze_id desc))[1] as example
from reasons
group by reason
order by trades desc, reason
"""
REJECTED = """
select regexp_replace(error, '( starting at)?: line \\d.*', '') as error, count(*) as frames,
       encode((array_agg(frame order by length(frame) desc))[1], 'escape') as example
from bronze.coinbase_frames_rejected
group by 1
order by frames desc, error
limit 12
"""
SECTIONS = {
    Role.READER: {
        "gold.ohlc_1m: the last minutes (UTC)": CANDLES,
        "gold.daily_kpis: the newest day (UTC)": KPIS,
        "gold.trade_completeness: all days": COMPLETENESS,
        "gold.top_movers": MOVERS,
        "Checks of this build": CHECKS,
    },
    Role.TRANSFORM: {
        "silver.coinbase_trades_quarantine: by reason": QUARANTINE,
        "bronze.coinbase_frames_rejected: what jsonb can't hold": REJECTED,
    },
}
SIGNIFICANT_DIGITS = 7
LONG_TEXTS = {"example", "meaning", "error"}
LEAST_TEXT_WIDTH = 16
COLUMN_GAP = 3
STYLES = {"pass": "", "warn": "yellow", "fail": "red", "error": "red", "skipped": "dim"}


async def show_report(console: Console, settings: WarehouseSettings) -> None:
    """Print gold and the checks as a BI tool sees them, and what was set aside."""
    for role, sections in SECTIONS.items():
        connection = await settings.connection(role).connect()
        try:
            for title, query in sections.items():
                try:
                    rows = await connection.fetch(query)
                except asyncpg.UndefinedTableError:
                    console.print(f"\n[bold]{title}[/bold]\n(not built)")
                else:
                    _show(console, title, rows)
        finally:
            await connection.close()
    bi, medallion = settings.connection(Role.READER), _command()
    console.print(
        "\n[bold]Look further[/bold]\n"
        f"  {medallion} dashboard        candles, checks and the pipeline in a browser\n"
        f"  {medallion} postgres psql    SQL on every layer\n"
        f"  {medallion} status           rows, newest entry and lag of each table\n"
        f"  {medallion} env              what a bare dbt, psql or BI tool needs\n"
        f"  {medallion} postgres stop    stop the database\n"
        "[bold]Power BI, Metabase and others read schema gold[/bold]\n"
        f"  host {bi.host}, port {bi.port}, database {bi.database}, user {bi.user}\n"
        f"  password: {medallion} env --role reader",
        highlight=False,
        soft_wrap=True,
    )


def _command() -> str:
    """Return how `medallion` is called here: by its path where it is not on PATH."""
    if shutil.which("medallion"):
        return "medallion"
    return os.path.relpath(Path(sys.executable).with_name("medallion"))


def _show(console: Console, title: str, rows: Sequence[asyncpg.Record]) -> None:
    """Print rows as a table of the columns that fit, the first two in any case."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    columns = {
        name: [_cell(row[name]) for row in rows] for name in (rows[0].keys() if rows else ())
    }
    widths: dict[str, int] = {}
    room = console.width - 2
    for name, cells in columns.items():
        width = LEAST_TEXT_WIDTH if name in LONG_TEXTS else max(map(cell_len, [name, *cells]))
        if len(widths) >= 2 and width + COLUMN_GAP > room:
            break
        widths[name] = width
        room -= width + COLUMN_GAP
    long_texts = LONG_TEXTS & widths.keys()
    for name in long_texts:
        widths[name] += max(room // len(long_texts), 0)
    for name, width in widths.items():
        numbers = isinstance(rows[0][name], int | Decimal)
        justify: Literal["left", "right"] = "right" if numbers else "left"
        table.add_column(name, justify=justify, max_width=width, overflow="ellipsis", no_wrap=True)
    for position, row in enumerate(rows):
        cells = [escape(columns[name][position][: widths[name]]) for name in widths]
        table.add_row(*cells, style=STYLES[row["verdict"]] if "verdict" in widths else None)
    console.print()
    console.print(table if rows else f"[bold]{title}[/bold]\n(no rows)")


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return value.strftime("%H:%M:%S" if value.second else "%H:%M")
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, Decimal):
        return sensible(value)
    return str(value)


def sensible(value: Decimal) -> str:
    """Write a number with the digits that matter: 83,420.21, 0.00000411, 1,234,567,890."""
    if value == 0:
        return "0"
    decimals = max(SIGNIFICANT_DIGITS - value.adjusted() - 1, 0)
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
