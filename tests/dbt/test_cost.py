"""A build reads what is new: not one model or check reads more as history grows."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import psycopg2
import pytest

from dashboards import queries
from medallion.status import NEWEST
from tests.dbt.conftest import Dbt, Lakehouse, advanced_frame, match, product

pytestmark = pytest.mark.postgres18_only

PRODUCTS = ("BTC-USD", "ETH-USD")
TRADES = 100_000
# More than a day has trades or candles, and far less than there are.
READ_AT_MOST = 4_000
# The 20,000 frames that it looks at, for each of three sources; there are 200,000.
ARRIVALS_READ_AT_MOST = 60_010
NEWEST_READ_AT_MOST = 1_000
HOUR = 3600
WINDOW = """
select
    set_config('medallion.window_low', low::text, false),
    set_config('medallion.window_high', high::text, false)
from ops.model_watermarks where model = %s
"""
# A month of a product, up to now: a trade long after all others would have every candle between
# judged again. Each 4,000th trade is missing, each 4,001st has a price that is none.
HISTORY = """
insert into bronze.coinbase_trades_raw
(received_at, source, channel, session_id, product_id, payload)
select
    now(), 'exchange_ws', 'matches', gen_random_uuid(), '{product_id}',
    jsonb_build_object(
        'type', 'match', 'trade_id', n, 'product_id', '{product_id}', 'side', 'sell',
        'size', '0.5', 'price', case when n % 4000 = 1 then 'x' else '100' end,
        'time', to_char(
            now() - interval '30 days' + n * interval '25.9 seconds',
            'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'
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
-- The exchange had every candle of that time but our own.
insert into bronze.coinbase_candles_raw (
    product_id, granularity, first_bucket, last_bucket, payload
)
select '{product_id}', granularity, first, first + 299 * length, jsonb_build_array()
from (values (60, interval '1 minute'), (3600, interval '1 hour')) as lengths (granularity, length)
cross join generate_series(
    date_trunc('hour', now()) - interval '30 days', now() - length * 300, length * 300
) as first;
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


class Explained:
    """A connection that counts the rows which each of its queries reads."""

    def __init__(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        self._connection = connection
        self.read: dict[tuple[str, str], int] = {}

    async def fetch(self, query: str, *of: Any) -> list[asyncpg.Record]:
        (plan,) = await self._connection.fetch(f"explain (analyze, format json) {query}", *of)
        read: Counter[str] = Counter()
        for table, rows in scans(json.loads(plan[0])[0]["Plan"]):
            read[table] += int(rows)
        self.read |= {(query, table): rows for table, rows in read.items()}
        return await self._connection.fetch(query, *of)

    async def fetchval(self, query: str, *of: Any) -> Any:
        return (await self.fetch(query, *of))[0][0]


async def rows_read_by_the_page(lakehouse: Lakehouse) -> dict[tuple[str, str], int]:
    """Count what the three tabs read, as the role that reads it."""
    connection = await lakehouse.database.connect("medallion_reader")
    explained: Any = Explained(connection)
    try:
        await queries.read_products(explained)
        for interval in queries.INTERVALS:
            assert (await queries.read_market(explained, "BTC-USD", interval)).candles
        assert (await queries.read_quality(explained, "invalid_price")).rejects
        assert (await queries.read_pipeline(explained)).rates
    finally:
        await connection.close()
    read: dict[tuple[str, str], int] = explained.read
    return read


async def rows_read_by_the_status(lakehouse: Lakehouse) -> dict[tuple[str, str], int]:
    """Count what `medallion status` reads for the newest entry of each table."""
    connection = await lakehouse.database.connect("medallion_transform")
    explained: Any = Explained(connection)
    try:
        # Some of them are short here.
        await connection.execute("set enable_seqscan to off")
        for name, newest in NEWEST.items():
            await explained.fetch(newest.format(name))
    finally:
        await connection.close()
    read: dict[tuple[str, str], int] = explained.read
    return read


def test_models_checks_and_the_page_read_no_more_as_history_grows(
    lakehouse: Lakehouse, dbt: Dbt
) -> None:
    for product_id in PRODUCTS:
        lakehouse.database.execute(HISTORY.format(product_id=product_id, trades=TRADES))
    for hour in (0, 1):
        versions = (product(each, min_market_funds=str(hour)) for each in PRODUCTS)
        lakehouse.list_products(*versions, hour=hour)
        built = lakehouse.dbt("build", "--vars", "{gap_grace_seconds: 0}")
        assert built.failed == {"candles_agree_with_the_exchange"}
    lakehouse.database.execute("vacuum analyze")
    # As if it had passed.
    lakehouse.database.execute("update ops.model_watermarks set checked = high")
    new = [match(TRADES + n, at=12 * HOUR + n) for n in range(1, 50)]
    lakehouse.receive(*new[:-9])
    lakehouse.receive(advanced_frame(*new[-9:-3]), source="advanced_ws")
    lakehouse.repair(*new[-3:])
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    for granularity in (60, HOUR):
        length = timedelta(seconds=granularity)
        lakehouse.answer(hour - 200 * length, hour - length, granularity=granularity)
    shutil.rmtree(dbt.target / "compiled")
    build = lakehouse.dbt("build", "--vars", "{gap_grace_seconds: 0}")
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

    lakehouse.database.execute("analyze")
    by_the_page = asyncio.run(rows_read_by_the_page(lakehouse))
    assert {
        where: rows
        for where, rows in by_the_page.items()
        if rows > (ARRIVALS_READ_AT_MOST if where[0] == queries.ARRIVALS else READ_AT_MOST)
    } == {}
    by_the_status = asyncio.run(rows_read_by_the_status(lakehouse))
    assert len(by_the_status) >= len(NEWEST)
    assert {
        where: rows
        for where, rows in by_the_status.items()
        if rows > (NEWEST_READ_AT_MOST if where[1] == "coinbase_trades" else 2)
    } == {}
