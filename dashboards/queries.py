"""What the page reads: gold and the ops history, as medallion_reader.

Each query is bounded by an index and a number of rows, so none gets slower as history grows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, Final, TypeAlias, TypeVar

import asyncpg

from warehouse.settings import ConnectionInfo, WarehouseError

# A string: the type is generic in the stubs only.
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
T = TypeVar("T")

INTERVALS: Final = ("1m", "5m", "15m", "1h", "6h", "1d")
CANDLES_SHOWN: Final = 192
"""16 hours of 5-minute candles; more are too thin to see on a laptop."""
PRODUCTS_SHOWN: Final = 24
DAYS_SHOWN: Final = 14
RUNS_SHOWN: Final = 40
REJECTS_COUNTED: Final = 2000
REJECTS_SHOWN: Final = 12
STATEMENT_SECONDS: Final = 10

_AWAY: Final = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.PostgresConnectionError,
    # It is shut down, or a statement took too long.
    asyncpg.OperatorInterventionError,
)


class NotBuiltError(Exception):
    """What is to be shown has not been built yet; the message says what to run."""


@dataclass(frozen=True)
class Candle:
    """A candle of any length."""

    start: datetime
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    volume: Decimal
    vwap: Decimal
    trade_count: int


@dataclass(frozen=True)
class LastDay:
    """The 24 hours up to a product's newest minute; `open` is the price that they began with."""

    as_of: datetime
    last: Decimal
    open: Decimal
    high: Decimal
    low: Decimal
    volume: Decimal
    quote_volume: Decimal
    vwap: Decimal
    trade_count: int

    @property
    def change(self) -> Decimal:
        """The change of price, in percent."""
        return 100 * (self.last - self.open) / self.open


@dataclass(frozen=True)
class Mover:
    """A product's change over a period of the newest snapshot."""

    period: str
    rank: int
    product_id: str
    price_change_pct: Decimal
    close: Decimal
    quote_volume: Decimal


@dataclass(frozen=True)
class DailyChange:
    """A product's day."""

    product_id: str
    day: date
    price_change_pct: Decimal
    open: Decimal
    close: Decimal


@dataclass(frozen=True)
class Market:
    """What the tab Market shows; `last_day` is None where the product has no trade."""

    last_day: LastDay | None
    candles: Sequence[Candle]
    movers: Sequence[Mover]
    daily_changes: Sequence[DailyChange]


@dataclass(frozen=True)
class Run:
    """A run of dbt; it has no end while it is at work."""

    run_id: str
    pipeline_name: str
    start_ts: datetime
    end_ts: datetime | None
    status: str
    records_processed: int
    models: int | None
    checks: int | None
    error_message: str | None


@dataclass(frozen=True)
class Verdict:
    """What a check said in a run."""

    run_id: str
    check_name: str
    table_name: str
    status: str
    failures: int | None
    description: str | None


@dataclass(frozen=True)
class Reject:
    """A quarantined trade; the payload is text as PostgreSQL writes it."""

    received_at: datetime
    product_id: str | None
    trade_id: str | None
    reject_reasons: Sequence[str]
    payload: str


@dataclass(frozen=True)
class RejectCount:
    """How many of the newest quarantined trades came at a time, for a reason."""

    start: datetime
    reason: str
    trades: int


@dataclass(frozen=True)
class Completeness:
    """A product's day: how many of its trades are here."""

    product_id: str
    day: date
    trades: int
    missing: int
    repaired: int
    share_complete: Decimal


@dataclass(frozen=True)
class Arrival:
    """What became of a product's newest trades."""

    product_id: str | None
    received: int
    accepted: int
    duplicates: int
    quarantined: int
    late: int
    repaired: int


@dataclass(frozen=True)
class Reconciliation:
    """How a product's newest candles compare with those of the exchange."""

    product_id: str
    granularity: str
    agree: int
    differ: int
    not_whole: int
    newest: datetime


@dataclass(frozen=True)
class Quality:
    """What the tab Quality shows; `reconciliation` is None where nothing reconciles."""

    runs: Sequence[Run]
    verdicts: Sequence[Verdict]
    reject_counts: Sequence[RejectCount]
    rejects: Sequence[Reject]
    completeness: Sequence[Completeness]
    arrivals: Sequence[Arrival]
    reconciliation: Sequence[Reconciliation] | None


@dataclass(frozen=True)
class Rate:
    """Trades per second in a minute of the market."""

    minute: datetime
    trades_per_second: float


@dataclass(frozen=True)
class Layer:
    """How far behind bronze a table is."""

    table_name: str
    frames_behind: int
    time_behind: timedelta | None
    received_at: datetime | None
    updated_at: datetime


@dataclass(frozen=True)
class Session:
    """A connection to Coinbase."""

    source: str
    products: Sequence[str]
    started_at: datetime
    ended_at: datetime | None
    frames: int
    trades: int
    end_reason: str | None


@dataclass(frozen=True)
class Gap:
    """Trades that the feed did not bring."""

    product_id: str
    first_id: int
    last_id: int
    found_by: str
    found_at: datetime
    missing: int
    repaired: int
    closed_at: datetime | None
    status: str


@dataclass(frozen=True)
class Pipeline:
    """What the tab Pipeline shows; `open_gaps` counts them all, `gaps` are the newest."""

    rates: Sequence[Rate]
    layers: Sequence[Layer]
    runs: Sequence[Run]
    sessions: Sequence[Session]
    gaps: Sequence[Gap]
    open_gaps: int


# From product to product by the primary key: `select distinct` would read every candle there is.
PRODUCTS: Final = """
with recursive products as (
    (select product_id from gold.ohlc_1d order by product_id limit 1)
    union all
    select (
        select product_id from gold.ohlc_1d
        where product_id > products.product_id
        order by product_id limit 1
    )
    from products where product_id is not null
)
select products.product_id
from products
left join gold.top_movers as mover on
    mover.snapshot_ts = (select max(snapshot_ts) from gold.top_movers)
    and mover.period = '24h'
    and mover.product_id = products.product_id
where products.product_id is not null
order by mover.quote_volume desc nulls last, products.product_id
"""
CANDLES: Final = {
    interval: f"""
select bucket_{interval} as start, open, high, low, close, volume, vwap, trade_count
from gold.ohlc_{interval}
where product_id = $1
order by bucket_{interval} desc
limit $2
"""
    for interval in INTERVALS
}
# Measured as top_movers measures it.
LAST_DAY: Final = """
with newest as (
    select bucket_1m + interval '1 minute' as as_of, close as last from gold.ohlc_1m
    where product_id = $1
    order by bucket_1m desc
    limit 1
)
select newest.as_of, newest.last, (array_agg(candle.open order by candle.bucket_15m))[1] as open,
       max(candle.high) as high, min(candle.low) as low, sum(candle.volume) as volume,
       sum(candle.quote_volume) as quote_volume,
       sum(candle.quote_volume) / sum(candle.volume) as vwap,
       sum(candle.trade_count)::bigint as trade_count
from newest
inner join gold.ohlc_15m as candle on
    candle.product_id = $1
    and candle.bucket_15m >= newest.as_of - interval '1 day'
    and candle.bucket_15m < newest.as_of
group by newest.as_of, newest.last
"""
MOVERS: Final = """
select period, rank, product_id, price_change_pct, close, quote_volume
from gold.top_movers
where snapshot_ts = (select max(snapshot_ts) from gold.top_movers) and rank <= $1
order by period, rank, product_id
"""
# The largest products of the newest day.
_LARGEST: Final = """
with newest as (select max(day) as day from gold.daily_kpis),
largest as (
    select product_id, quote_volume from gold.daily_kpis
    where day = (select day from newest)
    order by quote_volume desc
    limit $1
)
"""
DAILY_CHANGES: Final = f"""{_LARGEST}
select kpi.product_id, kpi.day, kpi.price_change_pct, kpi.open, kpi.close
from largest
inner join gold.daily_kpis as kpi on
    kpi.product_id = largest.product_id and kpi.day > (select day from newest) - $2::integer
order by largest.quote_volume desc, kpi.product_id, kpi.day
"""
COMPLETENESS: Final = f"""{_LARGEST}
select kept.product_id, kept.day, kept.trades, kept.missing, kept.repaired, kept.share_complete
from largest
inner join gold.trade_completeness as kept on
    kept.product_id = largest.product_id and kept.day > (select day from newest) - $2::integer
order by largest.quote_volume desc, kept.product_id, kept.day
"""
_RUN: Final = """
select run_id, pipeline_name, start_ts, end_ts, status, records_processed, models, checks,
       error_message
from ops.pipeline_runs
"""
RUNS: Final = f"{_RUN} order by start_ts desc limit $1"
# Checks of all history run nightly, which may be many runs ago.
NIGHTLY: Final = f"""{_RUN}
where start_ts > now() - interval '26 hours'
order by checks desc nulls last, start_ts desc
limit 1
"""
VERDICTS: Final = """
select run_id, check_name, table_name, status, failures, details ->> 'description' as description
from ops.dq_check_results
where run_id = any($1)
"""
_NEWEST_REJECTS: Final = """
with newest as (
    select * from ops.quarantined_trades order by bronze_id desc, trade_position desc limit $1
)
"""
REJECT_COUNTS: Final = f"""{_NEWEST_REJECTS}
, span as (
    select case
        when max(received_at) - min(received_at) < interval '3 hours' then interval '1 minute'
        when max(received_at) - min(received_at) < interval '7 days' then interval '1 hour'
        else interval '1 day'
    end as length
    from newest
)
select date_bin(span.length, received_at, timestamptz '2000-01-01 00:00:00+00') as start, reason,
       count(*) as trades
from newest
cross join unnest(reject_reasons) as reason
cross join span
group by 1, 2
order by 1, 2
"""
REJECTS: Final = f"""{_NEWEST_REJECTS}
select received_at, product_id, trade_id, reject_reasons, left(payload::text, 2000) as payload
from newest
where $2::text is null or $2 = any(reject_reasons)
order by bronze_id desc, trade_position desc
limit $3
"""
ARRIVALS: Final = "select * from ops.trade_arrivals order by received desc, product_id"
RECONCILIATION: Final = """
with newest as (
    select product_id, granularity, bucket, is_whole, verdict from gold.candle_reconciliation
    order by bucket desc
    limit 3000
)
select product_id, granularity, count(*) filter (where is_whole and verdict = 'agrees') as agree,
       count(*) filter (where is_whole and verdict <> 'agrees') as differ,
       count(*) filter (where not is_whole) as not_whole, max(bucket) as newest
from newest
group by product_id, granularity
order by differ desc, product_id, granularity
"""
RATES: Final = """
select bucket_1m as minute, (sum(trade_count) / 60)::float8 as trades_per_second
from gold.ohlc_1m
where bucket_1m > (select max(bucket_1m) from gold.ohlc_1m) - interval '6 hours'
group by bucket_1m
order by bucket_1m
"""
LAYERS: Final = """
select table_name, frames_behind, time_behind, received_at, updated_at
from ops.layers
order by array_position(array['bronze', 'silver', 'gold'], split_part(table_name, '.', 1)),
         table_name
"""
SESSIONS: Final = """
select source, products, started_at, ended_at, frames, trades, end_reason
from ops.feed_sessions
order by started_at desc
limit 8
"""
GAPS: Final = """
select product_id, first_id, last_id, found_by, found_at, missing, repaired, closed_at, status
from ops.trade_gaps
order by gap_id desc
limit 10
"""
OPEN_GAPS: Final = "select count(*) from ops.trade_gaps where closed_at is null"


async def read_products(connection: Connection) -> list[str]:
    """Return every product that has a candle, the one with most volume first."""
    return [row["product_id"] for row in await connection.fetch(PRODUCTS)]


async def read_market(connection: Connection, product_id: str, interval: str) -> Market:
    """Read the tab Market."""
    last_day = await _rows(connection, LastDay, LAST_DAY, product_id)
    candles = await _rows(connection, Candle, CANDLES[interval], product_id, CANDLES_SHOWN)
    return Market(
        last_day=last_day[0] if last_day else None,
        candles=candles[::-1],
        movers=await _rows(connection, Mover, MOVERS, PRODUCTS_SHOWN),
        daily_changes=await _rows(
            connection, DailyChange, DAILY_CHANGES, PRODUCTS_SHOWN, DAYS_SHOWN
        ),
    )


async def read_quality(connection: Connection, reason: str | None) -> Quality:
    """Read the tab Quality; `reason` chooses which quarantined trades are shown."""
    runs = await _rows(connection, Run, RUNS, RUNS_SHOWN)
    nightly = await _rows(connection, Run, NIGHTLY)
    runs += [run for run in nightly if run not in runs]
    reconciles = await connection.fetchval("select to_regclass('gold.candle_reconciliation')")
    return Quality(
        runs=runs[::-1],
        verdicts=await _rows(connection, Verdict, VERDICTS, [run.run_id for run in runs]),
        reject_counts=await _rows(connection, RejectCount, REJECT_COUNTS, REJECTS_COUNTED),
        rejects=await _rows(connection, Reject, REJECTS, REJECTS_COUNTED, reason, REJECTS_SHOWN),
        completeness=await _rows(
            connection, Completeness, COMPLETENESS, PRODUCTS_SHOWN, DAYS_SHOWN
        ),
        arrivals=await _rows(connection, Arrival, ARRIVALS),
        reconciliation=(
            await _rows(connection, Reconciliation, RECONCILIATION) if reconciles else None
        ),
    )


async def read_pipeline(connection: Connection) -> Pipeline:
    """Read the tab Pipeline: of sessions, gaps and lag also before the first build."""
    built = await connection.fetchval("select to_regclass('gold.ohlc_1m')")
    return Pipeline(
        rates=await _rows(connection, Rate, RATES) if built else [],
        layers=await _rows(connection, Layer, LAYERS),
        runs=(await _rows(connection, Run, RUNS, RUNS_SHOWN))[::-1],
        sessions=await _rows(connection, Session, SESSIONS),
        gaps=await _rows(connection, Gap, GAPS),
        open_gaps=await connection.fetchval(OPEN_GAPS),
    )


async def _rows(connection: Connection, kind: Callable[..., T], query: str, *of: Any) -> list[T]:
    return [kind(**row) for row in await connection.fetch(query, *of)]


def read(info: ConnectionInfo, reader: Callable[..., Awaitable[T]], *of: Any) -> T:
    """Read one tab over a connection of its own, as of one moment.

    Raises:
        WarehouseError: the database is away, or not migrated.
        NotBuiltError: dbt has not built what is read.

    """
    return asyncio.run(_read(info, reader, *of))


async def _read(info: ConnectionInfo, reader: Callable[..., Awaitable[T]], *of: Any) -> T:
    connection = await info.connect()
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            await connection.execute(f"set local statement_timeout = '{STATEMENT_SECONDS}s'")
            return await reader(connection, *of)
    except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
        raise NotBuiltError(
            "There is nothing to show yet. Run `medallion demo` to see a whole market day, or "
            "`medallion ingest` to record trades and `medallion transform` to build candles."
        ) from None
    except asyncpg.InsufficientPrivilegeError as error:
        raise WarehouseError(
            f"{info.user} may not read this ({error}). Run `medallion migrate`, then a build."
        ) from None
    except _AWAY as error:
        raise WarehouseError(
            f"PostgreSQL on {info.host}:{info.port} does not answer "
            f"({str(error) or type(error).__name__})."
        ) from None
    finally:
        # At once: one that is gone could not say good-bye.
        connection.terminate()
