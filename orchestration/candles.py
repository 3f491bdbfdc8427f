"""Which candles the exchange is to be asked for: read as who transforms, fetched as who ingests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import asyncpg

from ingestion.candles import CandleRange, Fetched, fetch_candles
from ingestion.coinbase.rest import PAGE_CANDLES, REQUESTS_PER_SECOND, RestClient
from orchestration.bronze import look_at
from warehouse.settings import ConnectionInfo, Role, WarehouseSettings

MOST_REQUESTS: Final = 1000
"""Of one run, the newest candles first: some four minutes. The next goes on with what is left."""
SETTLES_AFTER: Final = 5
"""The newest candles of the exchange lag a few intervals, and are wrong until then (FEED.md)."""

# The blocks of 300 that hold a candle of ours, as far as bronze has no answer for them; and again,
# after an hour, the candles whose answer is not what our trades say. They settle by the clock, and
# by the market: where a recording is replayed, the exchange has no newer ones either.
_DUE: Final = """
with ours as not materialized (
    select product_id, bucket_1m as bucket, 60 as granularity from gold.ohlc_1m
    union all
    select product_id, bucket_1h, 3600 from gold.ohlc_1h
),

products as (
    select
        product_id,
        granularity,
        length,
        first.bucket as first_bucket,
        greatest(
            first.bucket, date_bin(length, clock.at - $1 * length, 'epoch')
        ) as settled_until
    from (select distinct product_id from gold.ohlc_1d) as traded
    cross join (values (60, interval '1 minute'), (3600, interval '1 hour')) as lengths (
        granularity, length
    )
    cross join (select least(max(bucket_1m), now()) as at from gold.ohlc_1m) as clock
    cross join lateral (
        select ours.bucket from ours
        where ours.product_id = traded.product_id and ours.granularity = lengths.granularity
        order by ours.bucket
        limit 1
    ) as first
),

answered as (
    select
        product_id,
        granularity,
        range_agg(
            tstzrange(first_bucket, last_bucket + make_interval(secs => granularity))
        ) as buckets
    from bronze.coinbase_candles_raw
    group by product_id, granularity
),

unanswered as (
    select product_id, granularity, length, lower(part) as first, upper(part) as until
    from products
    left join answered using (product_id, granularity)
    cross join unnest(
        tstzmultirange(tstzrange(first_bucket, settled_until)) - coalesce(buckets, '{}')
    ) as part
),

blocks as (
    select
        product_id,
        granularity,
        greatest(first, block) as first,
        least(until, block + $2 * length) - length as last
    from unanswered
    cross join generate_series(
        date_bin($2 * length, first, 'epoch'), until - length, $2 * length
    ) as block
),

in_doubt as (
    select
        product_id,
        case granularity when '1m' then 60 else 3600 end as granularity,
        bucket
    from gold.candle_reconciliation
    where
        verdict in ('differs', 'only_ours', 'only_theirs')
        and is_whole
        and asked_at < now() - interval '1 hour'
)

select blocks.product_id, blocks.granularity, blocks.first, blocks.last
from blocks
-- A limit, for with exists the planner reads all of ours to look so few up.
cross join lateral (
    select from ours
    where
        ours.product_id = blocks.product_id
        and ours.granularity = blocks.granularity
        and ours.bucket >= blocks.first
        and ours.bucket <= blocks.last
    limit 1
) as held
union all
select product_id, granularity, min(bucket), max(bucket)
from in_doubt
group by
    product_id,
    granularity,
    date_bin($2 * make_interval(secs => granularity), bucket, 'epoch')
order by last desc, product_id, granularity
limit $3
"""

_VERDICTS: Final = """
select granularity, case when is_whole then verdict else 'not whole' end as verdict, count(*)
from gold.candle_reconciliation
group by 1, 2
order by 1 desc, 2
"""


async def due_candles(connection_info: ConnectionInfo) -> list[CandleRange]:
    """Return what to ask the exchange for now; nothing where gold is not built yet.

    Raises:
        WarehouseError: the database is away, or not migrated.

    """
    rows = await _fetch(connection_info, _DUE, SETTLES_AFTER, PAGE_CANDLES, MOST_REQUESTS)
    return [CandleRange(*row) for row in rows]


async def verdicts(connection_info: ConnectionInfo) -> list[tuple[str, str, int]]:
    """Return granularity, verdict and how many candles have it, as gold was built last.

    Raises:
        WarehouseError: the database is away, or not migrated.

    """
    return [(*row,) for row in await _fetch(connection_info, _VERDICTS)]


async def fetch_due_candles(
    warehouse: WarehouseSettings,
    rest_url: str,
    on_progress: Callable[[float, float], None] = lambda *_: None,
) -> Fetched:
    """Ask the exchange for the candles that are due, and save its answers.

    Args:
        warehouse: the database.
        rest_url: the exchange.
        on_progress: told how many requests are done, and of how many.

    Raises:
        WarehouseError: the database is away, or not migrated.
        LedgerAwayError: it went away meanwhile.

    """
    due = await due_candles(warehouse.connection(Role.TRANSFORM))
    # The other half is left to an ingester that repairs gaps.
    async with RestClient(rest_url, requests_per_second=REQUESTS_PER_SECOND / 2) as rest:
        connect = warehouse.connection(Role.INGEST).open
        return await fetch_candles(connect, rest, due, on_progress)


async def _fetch(
    connection_info: ConnectionInfo, query: str, *arguments: int
) -> list[asyncpg.Record]:
    connection = await connection_info.connect()
    try:
        # Says so where nothing is migrated.
        await look_at(connection)
        if await connection.fetchval("select to_regclass('gold.candle_reconciliation')") is None:
            return []
        return await connection.fetch(query, *arguments)
    finally:
        await connection.close()
