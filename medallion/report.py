"""What came of it: the tables at the end of the demo."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import asyncpg
from rich.console import Console
from rich.table import Table

from warehouse.settings import Role, WarehouseSettings

CANDLES = """
with newest as (select max(bucket_1m) as bucket_1m from gold.ohlc_1m)
select bucket_1m as minute, product_id as product, open, high, low, close, volume, vwap,
       trade_count as trades
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
select day, product_id as product, trades, volume, vwap, high, low, open, close,
       price_change_pct as "change %", realised_volatility as volatility,
       taker_buy_share as "taker buys"
from gold.daily_kpis
where day = (select max(day) from gold.daily_kpis)
order by quote_volume desc
"""
MOVERS = """
select period, rank, product_id as product, price_change_pct as "change %", open, close,
       trade_count as trades
from gold.top_movers
where snapshot_ts = (select max(snapshot_ts) from gold.top_movers) and rank <= 4
order by array_position(array['1h', '24h', '7d'], period), rank
"""
CHECKS = """
select check_name as check, table_name as table, status as verdict, failures,
       details ->> 'description' as meaning
from ops.dq_check_results
where run_id = (select run_id from ops.pipeline_runs order by start_ts desc limit 1)
order by array_position(array['error', 'fail', 'warn', 'skipped', 'pass'], status), table_name, 1
"""
QUARANTINE = """
select reason, count(*) as trades, (array_agg(payload::text order by bronze_id desc))[1] as example
from silver.coinbase_trades_quarantine
cross join unnest(reject_reasons) as reason
group by reason
order by trades desc, reason
"""
REJECTED = """
select error, count(*) as frames, encode((array_agg(frame order by rejected_id desc))[1], 'escape')
       as example
from bronze.coinbase_frames_rejected
group by error
order by frames desc, error
limit 12
"""
SIGNIFICANT_DIGITS = 7
STYLES = {"pass": "green", "warn": "yellow", "fail": "red", "error": "red", "skipped": "dim"}


async def show_report(console: Console, settings: WarehouseSettings) -> None:
    """Print gold and the checks as a BI tool sees them, and what was set aside."""
    reader = await settings.connection(Role.READER).connect()
    transform = await settings.connection(Role.TRANSFORM).connect()
    try:
        _show(console, "gold.ohlc_1m: the last minutes (UTC)", await reader.fetch(CANDLES))
        _show(console, "gold.daily_kpis: today (UTC)", await reader.fetch(KPIS))
        _show(console, "gold.top_movers", await reader.fetch(MOVERS))
        _show(console, "Checks of this build", await reader.fetch(CHECKS))
        _show(
            console,
            "silver.coinbase_trades_quarantine: by reason",
            await transform.fetch(QUARANTINE),
        )
        _show(
            console,
            "bronze.coinbase_frames_rejected: what jsonb can't hold",
            await transform.fetch(REJECTED),
        )
    finally:
        await reader.close()
        await transform.close()
    connection = settings.connection(Role.READER)
    console.print(
        "\n[bold]Look further[/bold]\n"
        "  medallion postgres psql               SQL on every layer (--role reader: as BI tools)\n"
        "  medallion status                      rows, newest entry and lag of each table\n"
        '  eval "$(medallion env)"               then, in dbt_project: dbt build, dbt docs serve\n'
        "  medallion postgres stop               stop the database\n"
        "[bold]Power BI, Metabase and others[/bold]\n"
        f"  host {connection.host}   port {connection.port}   database {connection.database}"
        f"   user {connection.user}   schema gold\n"
        "  the password:  medallion env --role reader"
    )


def _show(console: Console, title: str, rows: Sequence[asyncpg.Record]) -> None:
    table = Table(title=title, title_justify="left", title_style="bold", show_edge=False)
    if not rows:
        table.add_column("(no rows)")
        console.print()
        console.print(table)
        return
    for name, value in rows[0].items():
        number = isinstance(value, int | Decimal)
        table.add_column(
            name,
            justify="right" if number else "left",
            overflow="ellipsis" if name in {"example", "meaning"} else "fold",
            no_wrap=True,
        )
    for row in rows:
        table.add_row(*(_cell(name, value) for name, value in row.items()))
    console.print()
    console.print(table)


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name == "verdict":
        return f"[{STYLES[value]}]{value}[/]"
    if isinstance(value, datetime):
        return value.strftime("%H:%M:%S" if value.second else "%H:%M")
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, Decimal):
        return sensible(value)
    text = str(value).replace("[", "\\[")
    return text if len(text) <= 70 else text[:69] + "…"


def sensible(value: Decimal) -> str:
    """Write a number with the digits that matter: 83,420.21, 0.00000411, 1,234,567,890."""
    if value == 0:
        return "0"
    decimals = max(SIGNIFICANT_DIGITS - value.adjusted() - 1, 0)
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
