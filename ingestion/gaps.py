"""The ledger of trades that are missing: bronze.trade_gaps and bronze.trade_coverage."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Literal

import asyncpg

from ingestion.bronze import (
    COMMAND_SECONDS,
    REJECTED_COLUMNS,
    TRADE_COLUMNS,
    Connect,
    Connection,
    RejectedRow,
    TradeRow,
    open_bronze,
)
from ingestion.continuity import IdRange, TradeIdTracker, count
from ingestion.errors import LedgerAwayError

FoundBy = Literal["jump", "announced"]

MOST_TRIES: Final = 3
"""So often the exchange is asked for an id before it counts as one that doesn't exist."""
READ_BACK_ROWS: Final = 500_000
"""Of the end of bronze so much is read to find what came after coverage was written, some seconds
before a kill. What lies before is only fetched once more."""

# A product's row is locked first, so that two ingesters never record the same trades.
_LOCK_COVERAGE = """
    insert into bronze.trade_coverage as coverage (product_id, ids, bronze_id)
    values ($1, '{}', 0)
    on conflict (product_id) do update set product_id = excluded.product_id
    returning ids
"""

_RECORD = """
    with news as (
        select $2::int8multirange - ids as missing
        from bronze.trade_coverage
        where product_id = $1
    ),

    covered as (
        update bronze.trade_coverage
        set ids = ids + $2::int8multirange, updated_at = clock_timestamp()
        where product_id = $1
    )

    insert into bronze.trade_gaps (product_id, first_id, last_id, found_by, missing)
    select $1, lower(part), upper(part) - 1, $3, int8multirange(part)
    from news
    cross join unnest(missing) as part
    order by part
    returning first_id, last_id
"""

_COVER = """
    insert into bronze.trade_coverage as coverage (product_id, ids, bronze_id)
    values ($1, $2, $3)
    on conflict (product_id) do update set
        ids = coverage.ids + excluded.ids,
        bronze_id = greatest(coverage.bronze_id, excluded.bronze_id),
        updated_at = clock_timestamp()
"""

# The id of a frame is text that anyone may have written: it is cast only where it is a number.
_READ_BACK = """
    with frames as (
        select bronze_id, source, product_id, payload
        from bronze.coinbase_trades_raw
        where bronze_id > $1
    ),

    trades as (
        select bronze_id, product_id, payload ->> 'trade_id' as trade_id
        from frames
        where source in ('exchange_ws', 'rest')
        union all
        select bronze_id, trade ->> 'product_id', trade ->> 'trade_id'
        from frames
        cross join jsonb_path_query(payload, 'lax $.events[*].trades[*]') as trade
        where source = 'advanced_ws'
    )

    select product_id, case when trade_id ~ '^[0-9]{1,18}$' then trade_id::bigint end as trade_id
    from trades
    where product_id = any ($2) and trade_id ~ '^[0-9]{1,18}$'
    order by bronze_id, trade_id
"""

_DUE = """
    select product_id, range_agg(missing) as missing
    from bronze.trade_gaps
    where closed_at is null and next_try_at <= clock_timestamp()
    group by product_id
    order by min(next_try_at)
"""

_TAKE_OUT = """
    update bronze.trade_gaps
    set
        missing = missing - $2::int8multirange,
        repaired = repaired + (
            select coalesce(sum(upper(part) - lower(part)), 0)
            from unnest(missing * $2::int8multirange) as part
        ),
        closed_at = case when missing <@ $2::int8multirange then clock_timestamp() end
    where product_id = $1 and closed_at is null and missing && $2::int8multirange
"""

_NOT_ABSENT = """
    update bronze.trade_gaps
    set absent = absent - $2::int8multirange
    where product_id = $1 and status = 'absent' and absent && $2::int8multirange
"""

# A trade of the last minute may be one that the exchange's REST doesn't show yet.
_TRIED = """
    update bronze.trade_gaps
    set
        tries = tries + case when fresh then 0 else 1 end,
        next_try_at = clock_timestamp() + case when fresh then $4::interval else $3::interval end,
        absent = case when last_try then absent + missing * $2::int8multirange else absent end,
        missing = case when last_try then missing - $2::int8multirange else missing end,
        closed_at = case
            when last_try and missing <@ $2::int8multirange then clock_timestamp()
        end
    from (
        select
            gap_id,
            found_at > clock_timestamp() - interval '1 minute' as fresh,
            found_at <= clock_timestamp() - interval '1 minute' and tries + 1 >= $5 as last_try
        from bronze.trade_gaps
        where
            product_id = $1
            and closed_at is null
            and next_try_at <= clock_timestamp()
            and missing && $2::int8multirange
    ) as asked
    where trade_gaps.gap_id = asked.gap_id
    returning trade_gaps.missing, trade_gaps.absent
"""

_POSTPONE = """
    update bronze.trade_gaps
    set next_try_at = clock_timestamp() + $2::interval
    where product_id = $1 and closed_at is null and next_try_at <= clock_timestamp()
"""

# Of a gap that waits, only what is asked for is no longer left waiting.
_WAKE = """
    with waiting as (
        select gap_id, missing * $2::int8multirange as woken
        from bronze.trade_gaps
        where
            product_id = $1
            and next_try_at = 'infinity'
            and missing && $2::int8multirange
            and not missing <@ $2::int8multirange
        for update
    ),

    shortened as (
        update bronze.trade_gaps
        set missing = missing - woken
        from waiting
        where trade_gaps.gap_id = waiting.gap_id
    )

    select coalesce(range_agg(woken), '{}') from waiting
"""

_HURRY = """
    with hurried as (
        update bronze.trade_gaps
        set next_try_at = clock_timestamp()
        where
            product_id = $1
            and closed_at is null
            and missing && $2::int8multirange
            and (next_try_at <> 'infinity' or missing <@ $2::int8multirange)
        returning missing
    )

    select coalesce(range_agg(missing), '{}') from hurried
"""

# Ids between what is asked for and what is accounted for are missing as well.
_PLAN = """
    select
        $1::int8multirange - $3::int8multirange + $4::int8multirange as wanted,
        case
            when isempty($2::int8multirange) then '{}'
            else
                int8multirange(range_merge($1::int8multirange + $2::int8multirange))
                - int8multirange(range_merge($2::int8multirange))
                - $1::int8multirange
        end as between,
        upper($1::int8multirange) <= lower($2::int8multirange) as before
"""

_OPEN = """
    insert into bronze.trade_gaps (
        product_id, first_id, last_id, found_by, missing, next_try_at
    )
    select
        $1, lower($2::int8multirange), upper($2::int8multirange) - 1, 'backfill', $2,
        case when $3 then 'infinity'::timestamptz else clock_timestamp() end
    where not isempty($2::int8multirange)
"""

_MISSING = """
    select coalesce(range_agg(missing * $2::int8multirange), '{}') as missing
    from bronze.trade_gaps
    where product_id = $1 and closed_at is null and missing && $2::int8multirange
"""

_OPEN_TRADES = """
    select product_id, sum(upper(part) - lower(part))::bigint as trades
    from bronze.trade_gaps
    cross join unnest(missing) as part
    where closed_at is null and next_try_at <> 'infinity'
    group by product_id
"""

_AWAY = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    # asyncpg raises it where the server ends a connection in an unlucky moment.
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)


class RowRefusedError(Exception):
    """PostgreSQL can't store a value; sent again, it would refuse it again."""


@dataclass(frozen=True)
class LeftOff:
    """Where earlier runs left off with a product."""

    covered: list[IdRange]
    """The ids that are accounted for, in ascending order."""
    came_since: list[int]
    """Trades in bronze that are not in it: they came just before the end."""


@dataclass(frozen=True)
class Tried:
    """What became of ids that the exchange was asked for and did not have."""

    missing: int
    """So many are asked for again."""
    absent: int
    """So many do not exist, for the exchange was asked often enough."""


def is_being_cancelled() -> bool:
    """Tell whether this task was told to end: what it catches may have taken that error's place."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class GapLedger:
    """Keeps what is missing in the database, over one connection that is opened anew when it broke.

    Args:
        connect: opens a connection as a role that may write to bronze.

    Every method raises LedgerAwayError where the database is away; it can be called again.

    """

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._connection: Connection | None = None
        self._lock = asyncio.Lock()

    def close(self) -> None:
        """Give the connection up."""
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[Connection]:
        async with self._lock:
            try:
                if self._connection is None or self._connection.is_closed():
                    self._connection = await open_bronze(self._connect)
            except Exception as error:  # Whoever connects for us words it as they like.
                raise LedgerAwayError(str(error) or type(error).__name__) from error
            try:
                async with asyncio.timeout(COMMAND_SECONDS), self._connection.transaction():
                    yield self._connection
            except (asyncpg.DataError, asyncpg.ProgramLimitExceededError) as error:
                raise RowRefusedError(str(error)) from error
            except asyncio.CancelledError:
                self.close()
                raise
            except _AWAY as error:
                # After any failure only a new connection is to be trusted.
                self.close()
                if is_being_cancelled():
                    # The end of the transaction failed, too, and took the place of the cancelling.
                    raise asyncio.CancelledError from error
                told = str(error) or type(error).__name__
                if isinstance(error, asyncpg.UndefinedTableError | asyncpg.UndefinedColumnError):
                    told = f"{told}: run `medallion migrate`"
                raise LedgerAwayError(told) from error

    async def products(self) -> list[str]:
        """Return the products of which trades are accounted for."""
        async with self._transaction() as connection:
            rows = await connection.fetch("select product_id from bronze.trade_coverage")
        return [row["product_id"] for row in rows]

    async def left_off(self, products: Sequence[str]) -> dict[str, LeftOff]:
        """Return where earlier runs left off with these products; nothing for a new one.

        A run that was killed before it wrote any coverage is read back from the end of bronze.
        """
        async with self._transaction() as connection:
            rows = await connection.fetch(
                "select product_id, ids, bronze_id from bronze.trade_coverage "
                "where product_id = any ($1) and not isempty(ids)",
                list(products),
            )
            # A product without news has an older bronze_id than those it was followed with; of one
            # that was never covered, nothing is known but what bronze holds.
            all_covered = len(rows) == len(set(products))
            written = max(row["bronze_id"] for row in rows) if rows and all_covered else 0
            begin = max(written, await _last_bronze_id(connection) - READ_BACK_ROWS)
            trades = await connection.fetch(_READ_BACK, begin, list(products))
        covered = {row["product_id"]: _ranges(row["ids"]) for row in rows}
        came: dict[str, list[int]] = {}
        unknown = TradeIdTracker()
        for trade in trades:
            product_id, trade_id = trade["product_id"], trade["trade_id"]
            if product_id in covered:
                came.setdefault(product_id, []).append(trade_id)
            else:
                unknown.observe(product_id, trade_id)
        return {
            product_id: LeftOff(ranges, came.get(product_id, []))
            for product_id, ranges in (unknown.accounted_for() | covered).items()
        }

    async def last_bronze_id(self) -> int:
        """Return a bronze_id below which nothing that is not yet received can be written."""
        async with self._transaction() as connection:
            return await _last_bronze_id(connection)

    async def cover(self, covered: Mapping[str, Sequence[IdRange]], bronze_id: int) -> None:
        """Note that these ids are accounted for: committed to bronze, or recorded as a gap.

        Args:
            covered: ids per product.
            bronze_id: the rows up to this one hold nothing beyond them.

        """
        async with self._transaction() as connection:
            await connection.executemany(_COVER, _coverage(covered, bronze_id))

    async def record(
        self, product_id: str, missing: Sequence[IdRange], found_by: FoundBy
    ) -> list[IdRange]:
        """Open a gap for each range of which nobody has accounted for, and return these."""
        async with self._transaction() as connection:
            await connection.execute(_LOCK_COVERAGE, product_id)
            rows = await connection.fetch(_RECORD, product_id, _multirange(missing), found_by)
        return [IdRange(row["first_id"], row["last_id"]) for row in rows]

    async def ask(self, product_id: str, wanted: IdRange, *, again: bool) -> list[IdRange]:
        """Open a gap for what is not accounted for of a range, and have it tried at once.

        Args:
            product_id: the product.
            wanted: the range.
            again: open it for all of the range, what is in bronze included.

        Returns:
            The ids between the range and the history that is kept, which stay open until asked for.

        """
        asked = _multirange([wanted])
        async with self._transaction() as connection:
            covered = await connection.fetchval(_LOCK_COVERAGE, product_id)
            hurried = await connection.fetchval(_HURRY, product_id, asked)
            woken = await connection.fetchval(_WAKE, product_id, asked)
            known = hurried if again else covered
            plan = await connection.fetchrow(_PLAN, asked, covered, known, woken)
            assert plan is not None  # noqa: S101  (a row of constants)
            wanted_ids, between, before = plan
            # Before the history that is kept, nobody has missed anything; after it, somebody has.
            await connection.execute(_OPEN, product_id, wanted_ids, False)
            await connection.execute(_OPEN, product_id, between, before)
            accounted_for = {product_id: [wanted, *_ranges(between)]}
            await connection.executemany(_COVER, _coverage(accounted_for, bronze_id=0))
        return _ranges(between) if before else []

    async def due(self) -> dict[str, list[IdRange]]:
        """Return, per product, the missing ids that are to be asked for now."""
        async with self._transaction() as connection:
            rows = await connection.fetch(_DUE)
        return {row["product_id"]: _ranges(row["missing"]) for row in rows}

    async def missing(self, product_id: str, within: IdRange) -> list[IdRange]:
        """Return the ids of a range that are missing still."""
        async with self._transaction() as connection:
            row = await connection.fetchrow(_MISSING, product_id, _multirange([within]))
        return _ranges(row["missing"]) if row else []

    async def open_trades(self) -> dict[str, int]:
        """Return how many trades are missing per product, but for those that nobody asked for."""
        async with self._transaction() as connection:
            rows = await connection.fetch(_OPEN_TRADES)
        return {row["product_id"]: row["trades"] for row in rows}

    async def save(self, product_id: str, rows: Sequence[TradeRow], ids: Sequence[int]) -> None:
        """Append trades to bronze and take their ids out of the gaps, both or neither.

        Raises:
            RowRefusedError: PostgreSQL refuses one of them.

        """
        found = _multirange(IdRange(trade_id, trade_id) for trade_id in ids)
        async with self._transaction() as connection:
            await connection.copy_records_to_table(
                "coinbase_trades_raw",
                schema_name="bronze",
                columns=TRADE_COLUMNS,
                records=rows,
            )
            await connection.execute(_TAKE_OUT, product_id, found)
            await connection.execute(_NOT_ABSENT, product_id, found)

    async def set_aside(self, row: RejectedRow) -> None:
        """Keep what PostgreSQL refuses as the bytes that came."""
        async with self._transaction() as connection:
            await connection.copy_records_to_table(
                "coinbase_frames_rejected",
                schema_name="bronze",
                columns=REJECTED_COLUMNS,
                records=[row],
            )

    async def tried(
        self, product_id: str, asked: Sequence[IdRange], again: timedelta, soon: timedelta
    ) -> Tried:
        """Note that the exchange was asked for these ids and has no more of them.

        Args:
            product_id: the product.
            asked: what it was asked for.
            again: how long to wait before it is asked again.
            soon: how long for trades that were found missing within the last minute.

        """
        async with self._transaction() as connection:
            rows = await connection.fetch(
                _TRIED, product_id, _multirange(asked), again, soon, MOST_TRIES
            )
        return Tried(
            missing=sum(count(_ranges(row["missing"])) for row in rows),
            absent=sum(count(_ranges(row["absent"])) for row in rows),
        )

    async def postpone(self, product_id: str, wait: timedelta) -> None:
        """Ask for a product's missing trades later."""
        async with self._transaction() as connection:
            await connection.execute(_POSTPONE, product_id, wait)

    @asynccontextmanager
    async def claim(self, product_id: str) -> AsyncIterator[bool]:
        """Keep other ingesters from repairing a product meanwhile; yields False if one is at it."""
        key = f"medallion repair {product_id}"
        async with self._transaction() as connection:
            claimed = await connection.fetchval(
                "select pg_try_advisory_lock(hashtextextended($1, 0))", key
            )
        try:
            yield claimed
        finally:
            # With its connection, the claim is gone.
            if claimed and connection is self._connection and not connection.is_closed():
                async with self._transaction():
                    await connection.execute(
                        "select pg_advisory_unlock(hashtextextended($1, 0))", key
                    )


async def _last_bronze_id(connection: Connection) -> int:
    last: int | None = await connection.fetchval(
        "select pg_sequence_last_value('bronze.coinbase_trades_raw_bronze_id_seq')"
    )
    return last or 0


def _coverage(
    covered: Mapping[str, Sequence[IdRange]], bronze_id: int
) -> list[tuple[str, list[asyncpg.Range[int]], int]]:
    """Return rows of trade_coverage, in an order in which two writers never wait for each other."""
    return [
        (product_id, _multirange(ids), bronze_id) for product_id, ids in sorted(covered.items())
    ]


def _multirange(ranges: Iterable[IdRange]) -> list[asyncpg.Range[int]]:
    return [asyncpg.Range(first, last + 1) for first, last in ranges]


def _ranges(multirange: Sequence[Any]) -> list[IdRange]:
    return [IdRange(part.lower, part.upper - 1) for part in multirange]
