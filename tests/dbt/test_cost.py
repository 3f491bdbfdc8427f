"""A build reads what is new: not one model or check reads more as history grows."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg2
import pytest

from tests.dbt.conftest import Dbt, Lakehouse, advanced_frame, match, product

pytestmark = pytest.mark.postgres18_only

PRODUCTS = ("BTC-USD", "ETH-USD")
TRADES = 100_000
# More than a day has trades or candles, and far less than there are.
READ_AT_MOST = 4_000
HOUR = 3600
WINDOW = """
select
    set_config('medallion.window_low', low::text, false),
    set_config('medallion.window_high', high::text, false)
from ops.model_watermarks where model = %s
"""
# A month of a product: each 4,000th trade is missing, each 4,001st has a price that is none.
HISTORY = """
insert into bronze.coinbase_trades_raw
(received_at, source, channel, session_id, product_id, payload)
select
    now(), 'exchange_ws', 'matches', gen_random_uuid(), '{product_id}',
    jsonb_build_object(
        'type', 'match', 'trade_id', n, 'product_id', '{product_id}', 'side', 'sell',
        'size', '0.5', 'price', case when n % 4000 = 1 then 'x' else '100' end,
        'time', to_char(
            now() - interval '30 days' + n * interval '25 seconds', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'
        )
    )
from generate_series(2, {trades}) as n
where n % 4000 <> 0;
insert into bronze.trade_gaps (
    product_id, first_id, last_id, found_by, missing, absent, closed_at
)
select
    '{product_id}', n, n, 'jump',
    case when n % 8000 <> 0 then int8multirange(int8range(n, n + 1)) else '{{}}' end,
    case when n % 8000 = 0 then int8multirange(int8range(n, n + 1)) else '{{}}' end,
    case when n % 8000 = 0 then now() end
from generate_series(4000, {trades}, 4000) as n;
"""


def scans(plan: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield each table that a plan reads, and how many rows of it."""
    if "Relation Name" in plan:
        rows = plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)
        yield plan["Relation Name"], rows * plan["Actual Loops"]
    for child in plan.get("Plans", []):
        yield from scans(child)


def rows_read(lakehouse: Lakehouse, table: str, sql: str) -> Counter[str]:
    """Run what was compiled for the last window of a table, and count what it reads."""
    read: Counter[str] = Counter()
    with (
        closing(psycopg2.connect(lakehouse.database.dsn("admin"))) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute(WINDOW, [table])
        cursor.execute(f"explain (analyze, format json) {sql}")
        ((found,),) = cursor.fetchall()
    for name, rows in scans(found[0]["Plan"]):
        read[name] += int(rows)
    return read


def test_models_and_checks_read_the_new_rows_alone(lakehouse: Lakehouse, dbt: Dbt) -> None:
    for product_id in PRODUCTS:
        lakehouse.database.execute(HISTORY.format(product_id=product_id, trades=TRADES))
    for hour in (0, 1):
        versions = (product(each, min_market_funds=str(hour)) for each in PRODUCTS)
        lakehouse.list_products(*versions, hour=hour)
        lakehouse.build("--vars", "{gap_grace_seconds: 0}")
    lakehouse.database.execute("vacuum analyze")
    new = [match(TRADES + n, at=12 * HOUR + n) for n in range(1, 50)]
    lakehouse.receive(*new[:-9])
    lakehouse.receive(advanced_frame(*new[-9:-3]), source="advanced_ws")
    lakehouse.repair(*new[-3:])
    shutil.rmtree(dbt.target / "compiled")
    build = lakehouse.build("--vars", "{gap_grace_seconds: 0}")
    assert lakehouse.one("select max(trade_id) as id from silver.coinbase_trades")["id"] > TRADES

    read_much = {}
    for node in dbt.manifest.nodes.values():
        if node.name in build.statuses and node.config.materialized in {"incremental", "test"}:
            (compiled,) = dbt.target.glob(f"compiled/**/{node.name}.sql")
            read = rows_read(lakehouse, f"{node.schema}.{node.name}", compiled.read_text())
            read_much |= {
                (node.name, table): rows for table, rows in read.items() if rows > READ_AT_MOST
            }
    assert read_much == {}
