"""Databases with a month of trades in bronze, all alike but for how many there are.

Fifty products over thirty days, where no others are asked for: the n-th has an n-th of the first
one's trades, as on the exchange (docs/scaling.md). A few trades are missing, and come later; a few
have no price.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

import asyncpg

from benchmarks.models import Models
from warehouse.migrate import migrate
from warehouse.settings import Role, WarehouseSettings

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
T = TypeVar("T")

PRODUCTS: Final = 50
DAYS: Final = 30
# At noon, so that a day is half full; and over, so that each partition is there.
END: Final = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0) - timedelta(1)
MISSING: Final = 2_000
"""So many trades are missing in each history: what comes late does not grow with it."""
RUNS: Final = 5_000
"""Earlier runs of dbt that a history remembers, at most."""
NEW_PERIOD: Final = timedelta(minutes=2)
"""In which 5,000 new trades happen: about the exchange's 43 a second."""

# Ids differ between products, for the reference knows a trade by its id alone.
_SCHEMA: Final = """
create schema history;
create table history.products as
select
    product,
    product * sum(1.0 / product) over () as share,
    product * 1000000000 as last_id
from generate_series(1::bigint, {products}) as product;
create unlogged table history.trades (
    number bigint generated always as identity,
    product bigint, trade_id bigint, happened_at timestamptz
);
create unlogged table history.late (like history.trades);
"""
# As make_partitions would have made them, day by day.
_PARTITIONS: Final = """
do $$
declare
    day date;
begin
    for day in select generate_series(current_date - 32, current_date - 2, interval '1 day') loop
        execute format(
            'create table bronze.coinbase_trades_raw_%s partition of bronze.coinbase_trades_raw '
            'for values from (%L) to (%L)',
            to_char(day, 'YYYYMMDD'), day::timestamptz, (day + 1)::timestamptz
        );
    end loop;
end
$$
"""
# So many trades, from a time on and for so long; the ids of each product go on.
_DRAW: Final = """
with drawn as (
    update history.products
    set last_id = last_id + round($1::bigint / share)
    returning product, last_id, round($1::bigint / share)::bigint as trades
)

insert into history.trades (product, trade_id, happened_at)
select
    product,
    last_id - trades + nth,
    $2::timestamptz + (nth - random()) / trades * $3::interval as happened_at
from drawn
cross join lateral generate_series(1, trades) as nth
order by happened_at
"""
_SET_ASIDE: Final = """
with late as (
    delete from history.trades
    where number % greatest($1::bigint / $2::bigint, 2) = 1 and happened_at < $3
    returning *
)

insert into history.late select * from late
"""
_RECORD_GAPS: Final = """
insert into bronze.trade_gaps (product_id, first_id, last_id, found_by, missing)
select
    'COIN' || product || '-USD', trade_id, trade_id, 'jump',
    int8multirange(int8range(trade_id, trade_id, '[]'))
from history.late
"""
_FIELDS: Final = """
    'trade_id', trade_id,
    'side', case when trade_id % 2 = 0 then 'buy' else 'sell' end,
    'size', trim_scale(round(random()::numeric, 8) + 0.00000001)::text,
    'price', case
        when number % 5000 <> 2 then round(
            (100000.0 / product * (1 + 0.05 * sin(trade_id / 5000.0) + 0.001 * random()))::numeric,
            2
        )::text
    end,
    'time', to_char(happened_at, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
"""
_RECEIVE: Final = f"""
insert into bronze.coinbase_trades_raw
(received_at, source, channel, session_id, product_id, payload)
select
    happened_at + interval '50 milliseconds', 'exchange_ws', 'matches',
    '00000000-0000-0000-0000-000000000001', 'COIN' || product || '-USD',
    jsonb_build_object(
        'type', 'match',
        'maker_order_id', gen_random_uuid(),
        'taker_order_id', gen_random_uuid(),
        'product_id', 'COIN' || product || '-USD',
        'sequence', trade_id * 7,
        {_FIELDS}
    )
from history.trades
order by number
"""  # noqa: S608  (constants)
# What REST brings of the missing ones, each in a minute of its own.
_REPAIR: Final = f"""
with late as (
    delete from history.late
    where number in (select number from history.late order by random() limit $1)
    returning *
),

closed as (
    update bronze.trade_gaps set missing = '{{}}', repaired = 1, closed_at = now()
    from late
    where product_id = 'COIN' || product || '-USD' and first_id = trade_id
)

insert into bronze.coinbase_trades_raw
(received_at, source, channel, session_id, product_id, payload)
select
    $2, 'rest', 'trades', '00000000-0000-0000-0000-000000000001',
    'COIN' || product || '-USD', jsonb_build_object({_FIELDS})
from late
"""  # noqa: S608  (constants)
# The exchange's own candles of the last day, of which no trade is missing.
_CANDLES: Final = """
insert into bronze.coinbase_candles_raw
(product_id, granularity, first_bucket, last_bucket, payload)
select
    product_id, 60, first, first + interval '299 minutes',
    jsonb_agg(
        jsonb_build_array(
            extract(epoch from bucket_1m)::bigint, low::float8, high::float8, open::float8,
            close::float8, volume::float8
        )
        order by bucket_1m desc
    )
from gold.ohlc_1m
cross join lateral date_bin(interval '300 minutes', bucket_1m, '2000-01-01') as first
where first between $1::timestamptz and $2::timestamptz - interval '300 minutes'
group by product_id, first
"""
# A run a minute before the last one, with its checks, and a connection each: what the page and the
# summary of checks look through. Of each hundredth run the checks failed.
_REMEMBER: Final = """
with last_run as (
    select * from ops.pipeline_runs order by start_ts desc limit 1
),

past as (
    select
        nth, 'past ' || nth as run_id, last_run.run_id as last_run_id,
        nth * interval '-1 minute' as ago
    from last_run
    cross join generate_series(1, $1) as nth
),

runs as (
    insert into ops.pipeline_runs (
        run_id, pipeline_name, start_ts, end_ts, status, full_refresh, bronze_low, bronze_high,
        records_processed, models, checks
    )
    select
        past.run_id, pipeline_name, start_ts + ago, end_ts + ago, status, full_refresh, bronze_low,
        bronze_low, 0, models, checks
    from past
    inner join last_run on true
),

sessions as (
    insert into bronze.feed_sessions (session_id, source, url, products, started_at, ended_at)
    select gen_random_uuid(), 'exchange_ws', '', '{}', now() + ago, now() + ago from past
),

results as (
    insert into ops.dq_check_results (
        check_ts, run_id, check_name, check_type, table_name, severity, status, passed, failures,
        seconds, details
    )
    select
        check_ts + ago, past.run_id, check_name, check_type, table_name, severity,
        case when nth % 100 = 0 then 'fail' else status end, passed and nth % 100 <> 0, failures,
        seconds, details
    from ops.dq_check_results as result
    inner join past on result.run_id = past.last_run_id
    returning check_ts, check_name, passed
)

insert into ops.dq_check_hours as counted (hour, check_name, runs, passed, last_failed_at)
select
    date_trunc('hour', check_ts), check_name, count(*), count(*) filter (where passed),
    max(check_ts) filter (where not passed)
from results
group by 1, 2
on conflict (hour, check_name) do update
set runs = counted.runs + excluded.runs, passed = counted.passed + excluded.passed
"""


class History:
    """A database of so many trades.

    Args:
        server: any database of the server.
        trades: how many there are, but for those that are missing.
        folder: for what dbt writes.
        products: how many there are.
        days: over how many, before END.

    """

    def __init__(
        self,
        server: WarehouseSettings,
        trades: int,
        folder: Path,
        products: int = PRODUCTS,
        days: int = DAYS,
    ) -> None:
        self.trades = trades
        self._products = products
        self._period = timedelta(days)
        self.settings = server.model_copy(update={"pgdatabase": f"history_{trades}"})
        self._folder = folder / self.settings.pgdatabase
        self._received_to = END

    def receive(self) -> None:
        """Make the database, with the month in bronze."""
        asyncio.run(migrate(self.settings))

        async def fill(connection: Connection) -> None:
            await connection.execute(_SCHEMA.format(products=self._products))
            await connection.execute(_PARTITIONS)
            # The sort of all trades by their time fits into it.
            await connection.execute("set work_mem to '1GB'")
            await connection.execute(_DRAW, self.trades, END - self._period, self._period)
            await connection.execute(_SET_ASIDE, self.trades, MISSING, END - timedelta(1))
            await connection.execute(_RECEIVE)
            await connection.execute(_RECORD_GAPS)
            await connection.execute("truncate history.trades")
            await connection.execute("vacuum analyze")

        self.ask(fill)
        self.dbt = Models(self.settings, self._folder)

    def build(self) -> None:
        """Build it whole, with the exchange's candles of the last day, as if it ran for long."""
        self.dbt("run", "--full-refresh")

        async def hear(connection: Connection) -> None:
            await connection.execute(_CANDLES, END - timedelta(1), END)

        self.ask(hear)
        self.dbt("build")

        async def remember(connection: Connection) -> None:
            await connection.execute(_REMEMBER, min(self.trades // 100, RUNS))
            # The planner knows of all rows, as after an autovacuum.
            await connection.execute("vacuum analyze")
            await connection.execute("checkpoint")

        self.ask(remember)

    def receive_new(self, trades: int, late: int) -> None:
        """Append so many trades to bronze, of which so many were missing until now."""
        begins, self._received_to = self._received_to, self._received_to + NEW_PERIOD

        async def append(connection: Connection) -> None:
            await connection.execute(_DRAW, trades - late, begins, NEW_PERIOD)
            await connection.execute(_RECEIVE)
            await connection.execute(_REPAIR, late, self._received_to)
            await connection.execute("truncate history.trades")

        self.ask(append)

    def ask(self, question: Callable[[Connection], Awaitable[T]], role: Role = Role.ADMIN) -> T:
        """Let a function ask over a connection of its own."""

        async def connected() -> T:
            connection = await self.settings.connection(role).connect()
            try:
                return await question(connection)
            finally:
                await connection.close()

        return asyncio.run(connected())

    def fetch(self, query: str, *of: Any) -> list[asyncpg.Record]:
        """Return what a query finds."""
        return self.ask(lambda connection: connection.fetch(query, *of))
