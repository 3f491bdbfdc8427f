"""Moves whole days of bronze to Parquet files, and brings them back.

A day leaves bronze only when each of its rows has been read back from a file and is what bronze
holds, and dbt is done with it: `bronze.drop_day` looks again before it drops. Whatever is killed,
and whenever, run again it goes on.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Final, TypeAlias, TypeVar
from urllib.parse import quote

import asyncpg

from warehouse.parquet import CHECKSUM, ParquetFile, Row, Tally
from warehouse.settings import ArchiveError, Role, WarehouseError, WarehouseSettings

# A string: the type is generic in the stubs only.
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
Key: TypeAlias = tuple[str | None, int]
"""What a day has one file for: a product, or None for rows that name none, and a part."""
T = TypeVar("T")

FETCH_ROWS: Final = 500
"""Rows fetched at a time. Most have 300 bytes, and one up to 16 MiB."""
LOCK_TRIES: Final = 12
LOCK_PAUSE_SECONDS: Final = 5.0
"""Who waits for bronze as a whole stops everyone behind: after 2 s it is tried again later."""
OTHERS_SECONDS: Final = 10

# Upper case alone: a file system may take BTC-USD and btc-usd for one.
_PLAIN_PRODUCT: Final = re.compile(r"[A-Z0-9]+(-[A-Z0-9]+){1,4}")

_ALONE = "select pg_advisory_lock(hashtextextended('medallion archive', 0))"

_DAYS = """
    with days as (
        select to_date(right(relname, 8), 'YYYYMMDD') as day
        from pg_inherits
        inner join pg_class on pg_class.oid = inhrelid
        where
            inhparent = 'bronze.coinbase_trades_raw'::regclass
            and relname ~ '_[0-9]{8}$'
        union
        select (received_at at time zone 'UTC')::date
        from bronze.coinbase_trades_raw_default
        where isfinite(received_at)
    )

    select day
    from days
    where
        day < current_date - $1::integer
        -- What somebody brought back stays as long again.
        and not exists (
            select from bronze.archive_files
            where archive_files.day = days.day and restored_at >= current_date - $1::integer
        )
    order by day
"""

# What came after a day was dropped has a higher bronze_id than all that was dropped.
_PARTS = """
    select max(last_bronze_id) + 1
    from bronze.archive_files
    where day = $1 and dropped_at is not null
    group by part
    order by part
"""

_COUNT = """
    select count(*) from bronze.coinbase_trades_raw where received_at >= $1 and received_at < $2
"""

_ROWS = """
    select
        bronze_id, received_at, source, channel, session_id::text, product_id, payload,
        width_bucket(bronze_id, $3::bigint[]) as part
    from bronze.coinbase_trades_raw
    where received_at >= $1 and received_at < $2
    order by product_id, part, bronze_id
"""

_TALLIES = f"""
    select
        product_id,
        width_bucket(bronze_id, $3::bigint[]) as part,
        count(*) as rows,
        {CHECKSUM} as checksum,
        min(bronze_id) as first_bronze_id,
        max(bronze_id) as last_bronze_id
    from {{table}}
    where received_at >= $1 and received_at < $2
    group by product_id, part
"""  # noqa: S608  (constants)

_EXPORTED = """
    insert into bronze.archive_files (
        url, day, product_id, part, rows, checksum, first_bronze_id, last_bronze_id
    )
    values ($1, $2, $3, $4, $5, $6, $7, $8)
    on conflict (day, product_id, part) do update set
        url = excluded.url,
        rows = excluded.rows,
        checksum = excluded.checksum,
        first_bronze_id = excluded.first_bronze_id,
        last_bronze_id = excluded.last_bronze_id,
        exported_at = excluded.exported_at,
        verified_at = null
"""


@dataclass(frozen=True)
class Moved:
    """A day, or some products of it, that was archived or restored."""

    day: date
    rows: int
    files: int
    size: int
    """Bytes of the files."""

    def __str__(self) -> str:
        size = self.size / 1e6
        return f"{self.day}: {self.rows:,} rows, {self.files:,} files, {size:,.1f} MB"


@asynccontextmanager
async def open_archive(
    settings: WarehouseSettings, on_progress: Callable[[float, float], None] = lambda *_: None
) -> AsyncIterator[Archive]:
    """Open the archive, for one at a time.

    Args:
        settings: the database, and where the files are.
        on_progress: told now and then how many rows of a day are moved, and of how many.

    Raises:
        WarehouseError: the database is away, not migrated, or refuses this user.
        ArchiveError: what was asked failed, and trying again may help.

    """
    info = settings.connection(Role.ARCHIVE)
    reader, writer = await info.connect(), await info.connect()
    try:
        await writer.execute(f"set lock_timeout = '{OTHERS_SECONDS}s'")
        try:
            await writer.execute(_ALONE)
        except asyncpg.LockNotAvailableError:
            raise ArchiveError(
                "Another `medallion archive` or `medallion restore` is at work: wait for its end."
            ) from None
        root = f"{settings.medallion_archive_url}/{quote(info.database)}"
        yield Archive(reader, writer, root, on_progress)
    except (
        asyncpg.UndefinedTableError,
        asyncpg.UndefinedFunctionError,
        asyncpg.InsufficientPrivilegeError,
    ) as error:
        raise WarehouseError(
            f"Who archives may not do so here ({error}). Run `medallion migrate`, and set "
            "MEDALLION_ARCHIVE_PASSWORD, or PGUSER to medallion_archive."
        ) from None
    except asyncpg.ObjectNotInPrerequisiteStateError as error:
        raise ArchiveError(f"{error}. {error.hint or ''}".strip()) from None
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        raise ArchiveError(f"The database gave up ({error}): run it again.") from error
    finally:
        # Without a farewell that may wait: with its connection, the lock is gone.
        reader.terminate()
        writer.terminate()


class Archive:
    """Days of bronze, as files below `root`."""

    def __init__(
        self,
        reader: Connection,
        writer: Connection,
        root: str,
        on_progress: Callable[[float, float], None],
    ) -> None:
        self._reader = reader
        # The ledger is written while the rows are read.
        self._writer = writer
        self._root = root
        self._on_progress = on_progress
        self._done = self._due = 0.0

    async def due(self, keep_days: int) -> list[date]:
        """Return the days that bronze has from before the `keep_days` days before today."""
        rows = await self._reader.fetch(_DAYS, keep_days)
        return [row["day"] for row in rows]

    async def why_not(self, day: date, keep_days: int | None) -> str | None:
        """Return why a day can't be archived yet, if so."""
        age = datetime.now(UTC).date() - day
        if age < timedelta(days=1):
            return f"{day} is not over."
        if keep_days is not None and age <= timedelta(days=keep_days):
            return f"{day} is one of the {keep_days} days that MEDALLION_BRONZE_DAYS keeps."
        last_id, checked_id = await self._reader.fetchrow(  # type: ignore[misc]  # (always a row)
            "select max(bronze_id), bronze.checked_id() from bronze.coinbase_trades_raw "
            "where received_at >= $1 and received_at < $2",
            *_bounds(day),
        )
        if (last_id or 0) > checked_id:
            return (
                f"{day} waits until dbt has transformed and checked all of it: run `dbt build`, "
                "and put right what fails."
            )
        return None

    async def archive(self, day: date) -> Moved:
        """Write a day to files, read them back, and drop it from bronze.

        Raises:
            ArchiveError: a file does not hold what bronze holds, or the day can't be dropped now;
                nothing is.

        """
        await self._gather(day)
        parts = [row[0] for row in await self._reader.fetch(_PARTS, day)]
        self._done, self._due = 0, await self._reader.fetchval(_COUNT, *_bounds(day))
        files = await self._export(day, parts)
        await self._verify(day, parts, files)
        rows: int = await self._when_free(
            lambda: self._writer.fetchval("select bronze.drop_day($1)", day)
        )
        return Moved(day, rows, len(files), sum(file.size() for file in files.values()))

    async def restore(self, day: date, product: str | None = None) -> Moved:
        """Bring a day, or one product of it, back to bronze; what is there already stays.

        Raises:
            WarehouseError: nothing like that was ever archived.
            ArchiveError: a file is not what it was; nothing is restored.

        """
        found = await self._reader.fetch(
            "select * from bronze.archive_files where day = $1 and ($2::text is null or "
            "product_id = $2) and dropped_at is not null",
            day,
            product,
        )
        if not found:
            raise WarehouseError(
                f"Nothing of {f'{product} on ' if product else ''}{day} is archived. "
                "bronze.archive_files has what is."
            )
        wanted = [row for row in found if row["status"] == "dropped"]
        files = {row["url"]: ParquetFile(row["url"]) for row in wanted}
        if wanted:
            await self._bring_back(day, wanted, files)
        size = sum(file.size() for file in files.values())
        return Moved(day, sum(row["rows"] for row in wanted), len(wanted), size)

    async def _gather(self, day: date) -> None:
        """Give a day that has none a partition, with the rows that came too late for one."""
        partition = f"bronze.coinbase_trades_raw_{day:%Y%m%d}"
        if await self._writer.fetchval("select to_regclass($1) is null", partition):
            await self._writer.fetchval("select bronze.make_day_table($1)", day)
            await self._when_free(lambda: self._writer.execute("select bronze.attach_day($1)", day))

    async def _export(self, day: date, parts: list[int]) -> dict[Key, ParquetFile]:
        known = await self._writer.fetch(
            "select product_id, part, url, dropped_at from bronze.archive_files where day = $1", day
        )
        urls = {row["url"] for row in known}
        # What is restored has its file, wherever new ones go by now.
        restored: dict[Key, str] = {
            (row["product_id"], row["part"]): row["url"] for row in known if row["dropped_at"]
        }
        files: dict[Key, ParquetFile] = {}
        async with self._reader.transaction(isolation="repeatable_read", readonly=True):
            records = aiter(self._reader.cursor(_ROWS, *_bounds(day), parts, prefetch=FETCH_ROWS))
            record = await anext(records, None)
            while record is not None:
                key = record["product_id"], record["part"]
                file = ParquetFile(restored.get(key) or self._url(day, *key))
                if file.url not in urls and file.exists():
                    raise ArchiveError(
                        f"{file.url} is there, and this database did not write it. Set "
                        "MEDALLION_ARCHIVE_URL to a place of its own."
                    )
                with file.writing() as writer:
                    while record is not None and (record["product_id"], record["part"]) == key:
                        writer.add(Row(*record[:-1]))
                        # The other half of the work is to read it back.
                        self._move(0.5)
                        record = await anext(records, None)
                # Before it is in place: no file is there that nobody knows.
                await self._note(file, day, key, writer.tally)
                file.publish()
                files[key] = file
        return files

    async def _note(self, file: ParquetFile, day: date, key: Key, tally: Tally) -> None:
        await self._writer.execute(
            _EXPORTED,
            file.url,
            day,
            *key,
            tally.rows,
            Decimal(tally.checksum),
            tally.first_bronze_id,
            tally.last_bronze_id,
        )

    async def _verify(self, day: date, parts: list[int], files: Mapping[Key, ParquetFile]) -> None:
        here = await self._tallies("bronze.coinbase_trades_raw", day, parts)
        if here.keys() != files.keys():
            raise ArchiveError(f"Frames of {day} came meanwhile: run it again. Nothing is dropped.")
        for key, file in files.items():
            tally = Tally()
            for _ in file.read(tally):
                self._move(0.5)
            if tally != here[key]:
                raise ArchiveError(
                    f"{file.url} holds {tally}; bronze holds {here[key]}. Nothing of {day} is "
                    "dropped: look at the disk, and run it again, which writes the file anew."
                )
            await self._writer.execute(
                "update bronze.archive_files set verified_at = clock_timestamp() where url = $1",
                file.url,
            )

    async def _tallies(self, table: str, day: date, parts: list[int]) -> dict[Key, Tally]:
        rows = await self._reader.fetch(_TALLIES.format(table=table), *_bounds(day), parts)
        return {(row["product_id"], row["part"]): _tally(row) for row in rows}

    async def _bring_back(
        self, day: date, wanted: list[asyncpg.Record], files: Mapping[str, ParquetFile]
    ) -> None:
        """Fill a table beside bronze, look at what it holds, and make it the partition."""
        self._done, self._due = 0, sum(row["rows"] for row in wanted)
        table = await self._writer.fetchval("select bronze.make_day_table($1)", day)
        for row in wanted:
            tally = Tally()
            await self._writer.copy_records_to_table(
                table,
                schema_name="bronze",
                columns=Row._fields,
                records=self._moving(files[row["url"]].read(tally)),
            )
            if tally != _tally(row):
                raise ArchiveError(
                    f"{row['url']} holds {tally}; it was archived with {_tally(row)}: "
                    f"nothing of {day} is restored. Bring the file back from a backup."
                )
        parts = [row[0] for row in await self._reader.fetch(_PARTS, day)]
        came = await self._tallies(f"bronze.{table}", day, parts)
        if came != {(row["product_id"], row["part"]): _tally(row) for row in wanted}:
            raise ArchiveError(f"PostgreSQL took other rows of {day} than it was given.")

        async def attach() -> None:
            async with self._writer.transaction():
                await self._writer.execute("select bronze.attach_day($1)", day)
                await self._writer.execute(
                    "update bronze.archive_files set restored_at = clock_timestamp() "
                    "where url = any ($1)",
                    list(files),
                )

        await self._when_free(attach)

    def _moving(self, rows: Iterable[T]) -> Iterator[T]:
        for row in rows:
            self._move(1)
            yield row

    def _move(self, rows: float) -> None:
        self._done += rows
        if self._done % FETCH_ROWS == 0 or self._done >= self._due:
            self._on_progress(self._done, self._due)

    async def _when_free(self, step: Callable[[], Awaitable[T]]) -> T:
        """Do what needs bronze for itself for a moment, when nobody is reading."""
        for _ in range(LOCK_TRIES - 1):
            try:
                return await step()
            except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
                await asyncio.sleep(LOCK_PAUSE_SECONDS)
        return await step()

    def _url(self, day: date, product_id: str | None, part: int) -> str:
        name = product_id or ""
        if product_id is None:
            name = "_no_product"
        elif not _PLAIN_PRODUCT.fullmatch(product_id) or len(product_id) > 100:
            # Whatever a frame may call its product, a file can be called this.
            name = "_" + hashlib.sha256(product_id.encode()).hexdigest()[:32]
        suffix = f".{part}" if part else ""
        return f"{self._root}/coinbase_trades_raw/day={day}/{name}{suffix}.parquet"


def _bounds(day: date) -> tuple[datetime, datetime]:
    begin = datetime.combine(day, time(), UTC)
    return begin, begin + timedelta(days=1)


def _tally(row: asyncpg.Record) -> Tally:
    return Tally(row["rows"], int(row["checksum"]), row["first_bronze_id"], row["last_bronze_id"])
