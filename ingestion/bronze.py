"""Writes frames to bronze: batched binary COPY out of a bounded buffer, and a spool behind it."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Final, NamedTuple, TypeAlias
from uuid import UUID

import asyncpg
import msgspec
import structlog

from ingestion.coinbase.wire import products_in
from ingestion.errors import DamagedSpoolError, FatalBronzeError
from ingestion.spool import Spool, SpoolFullError

# Strings: the type is generic in the stubs only.
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
Connect: TypeAlias = "Callable[[], Awaitable[Connection]]"
"""Opens a connection that may insert into bronze."""

log = structlog.get_logger(__name__)

LOCK_SECONDS: Final = 30.0
"""How long the server lets a statement wait for a lock, before it is cancelled and tried again."""
COMMAND_SECONDS: Final = 60.0
"""How long a statement may take before its connection is taken for dead. It is longer than
LOCK_SECONDS: what the server has cancelled is surely not stored, what was left behind may be."""
CONNECT_SECONDS: Final = 30.0
FIRST_RETRY_SECONDS: Final = 0.2
LONGEST_RETRY_SECONDS: Final = 5.0
PARTITIONS_SECONDS: Final = 3600.0
PARTITIONS_RETRY_SECONDS: Final = 60.0
REJECTED_ROWS: Final = 100
"""Rejected frames per COPY. They are few, and large ones are more likely among them."""
GROUP_BATCHES: Final = 4
"""So many batches may wait for the disk, before the socket has to."""
AHEAD_BATCHES: Final = 4
"""So many batches may wait for a database that takes them, before the socket has to. What is read
faster than it is written would keep the event loop from writing, and fill the memory."""
AHEAD_SECONDS: Final = 1.0
"""So long the socket waits for a database that takes nothing, before memory is used up to its
bound. An exchange disconnects who reads too slowly (FEED.md), but not that soon."""
FULL_RETRY_SECONDS: Final = 1.0
"""How often a spool that is full is tried again."""
SESSION_SECONDS: Final = 1.0
"""A running session's counts are written at most this often: each write leaves a dead row."""

# What PostgreSQL says of a value that it can't store: class 22, and 54 for limits of its own.
# asyncpg raises ValueError and OverflowError for what it can't encode, before anything is stored.
_BAD_DATA = (asyncpg.DataError, asyncpg.ProgramLimitExceededError, ValueError, OverflowError)

# What a retry can't cure. At the start the user is there to read it; later it may be a migration
# or a change of passwords under way, and giving up would lose the buffer.
_PERMANENT = (
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InvalidSchemaNameError,
    asyncpg.InsufficientPrivilegeError,
    asyncpg.UndefinedTableError,
    asyncpg.UndefinedColumnError,
)

TRADE_COLUMNS = ("received_at", "source", "channel", "session_id", "product_id", "payload")
REJECTED_COLUMNS = ("received_at", "source", "session_id", "frame", "error")
_SESSION_COLUMNS = (
    "session_id", "source", "url", "products", "started_at", "ended_at", "frames", "trades",
    "end_reason",
)  # fmt: skip

_SAVE_SESSION = """
    insert into bronze.feed_sessions (
        session_id, source, url, products, started_at, ended_at, frames, trades, end_reason
    )
    values ($1, $2, $3, $4, $5, $6, $7, $8, $9)
    on conflict (session_id) do update set
        products = excluded.products,
        ended_at = excluded.ended_at,
        frames = excluded.frames,
        trades = excluded.trades,
        end_reason = excluded.end_reason
"""

# What an older migration lacks.
_CHECK = """
    update bronze.feed_sessions set products = products where false;
    select from bronze.trade_gaps, bronze.trade_coverage where false
"""

_EACH_ROW_HAS_A_PRODUCT = """
    select attnotnull from pg_attribute
    where attrelid = 'bronze.coinbase_trades_raw'::regclass and attname = 'product_id'
"""

TradeRow = tuple[datetime, str, str, UUID, str | None, bytes]
"""One frame for coinbase_trades_raw: received_at, source, channel, session_id, product_id, frame.

A plain tuple: it is made for each frame and goes to COPY as it is."""


class RejectedRow(NamedTuple):
    """One frame for coinbase_frames_rejected."""

    received_at: datetime
    source: str
    session_id: UUID
    frame: bytes
    error: str


_Row: TypeAlias = TradeRow | RejectedRow

_PACK = msgspec.msgpack.Encoder(uuid_format="bytes").encode
_UNPACK_TRADE = msgspec.msgpack.Decoder(TradeRow).decode
_UNPACK_REJECTED = msgspec.msgpack.Decoder(RejectedRow).decode
# How msgpack begins an array of up to 15 values: the two kinds of row differ in length.
_TRADE_BEGINS: Final = 0x90 + len(TRADE_COLUMNS)


@dataclass(slots=True)
class FeedSession:
    """One connection to the exchange, as feed_sessions keeps it."""

    session_id: UUID
    source: str
    url: str
    products: tuple[str, ...]
    started_at: datetime
    ended_at: datetime | None = None
    end_reason: str | None = None
    trades: int = 0
    trade_frames: int = 0
    other_frames: int = 0

    @property
    def frames(self) -> int:
        """Frames received, of every type."""
        return self.trade_frames + self.other_frames


class _Saved(NamedTuple):
    """When a running session was saved last, and with how many frames."""

    at: float
    frames: int


async def open_bronze(connect: Connect) -> Connection:
    """Open a connection on which a frame goes into jsonb, and comes back, as its bytes.

    Raises:
        TimeoutError: the server does not answer.

    """
    async with asyncio.timeout(CONNECT_SECONDS):
        connection = await connect()
        try:
            await connection.execute(
                f"set lock_timeout = '{LOCK_SECONDS}s';"
                # For Citus, which else opens a connection for each part of a batch, and closes it.
                # Plain PostgreSQL keeps them as names that mean nothing to it.
                "set citus.multi_shard_modify_mode = 'sequential';"
                "set citus.max_cached_conns_per_worker = 8"
            )
            # 1 is the version of jsonb's binary form.
            await connection.set_type_codec(
                "jsonb",
                schema="pg_catalog",
                encoder=lambda frame: b"\x01" + frame,
                decoder=lambda stored: stored[1:],
                format="binary",
            )
        except BaseException:
            connection.terminate()
            raise
    return connection


class BronzeWriter:
    """Takes frames without waiting and saves them in batches.

    While one batch is on its way the next is filled. What is not saved stays in the buffer until
    the database takes it; when a connection dies within a COPY, the batch is sent again, so a frame
    may be twice in bronze and is never absent. Meant for one task that puts, and one that runs.

    Memory holds the oldest frames. What comes beyond its bound goes to the spool, and so does all
    that comes later until the spool is empty again: bronze gets the frames in the order they came.

    Args:
        connect: opens a connection as a role that may insert into bronze.
        spool: holds what memory can't; `open` opens it, `run` closes it.
        batch_size: rows per COPY.
        flush_interval: the longest wait before a part-filled batch is written to bronze or to the
            spool, in seconds.
        max_buffered: frames kept in memory, those on their way included.
        on_batch: is told the seconds that each batch took.
        on_refused: is given the rows that PostgreSQL refuses, whose trades bronze can't tell.

    """

    def __init__(
        self,
        connect: Connect,
        spool: Spool,
        *,
        batch_size: int,
        flush_interval: float,
        max_buffered: int,
        on_batch: Callable[[float], None] = lambda _seconds: None,
        on_refused: Callable[[TradeRow], None] = lambda _row: None,
    ) -> None:
        self._connect = connect
        self._spool = spool
        self._batch_size = batch_size
        self._flush_interval = flush_interval
        self._max_buffered = max_buffered
        self._on_batch = on_batch
        self._on_refused = on_refused

        self._rows: deque[_Row] = deque()
        # What waits for the spool, and what is being written to it.
        self._group: deque[_Row] = deque()
        self._writing: list[_Row] = []
        # Takes what comes: _rows, or _group while the spool is in use.
        self._incoming = self._rows
        # Frames in the spool, without the batch that is on its way from there.
        self._spooled = 0

        # A stack: the batch on its way, or what bisection has left of it, in order from the top.
        self._chunks: list[list[TradeRow]] = []
        self._rejected: deque[RejectedRow] = deque()
        self._batch_frames = 0
        self._batch_is_spooled = False
        self._sessions: dict[UUID, FeedSession] = {}
        self._saved_sessions: dict[UUID, _Saved] = {}

        self._ahead = AHEAD_BATCHES * batch_size
        # Whether the database takes what comes, and whether the socket waits for it therefore.
        self._keeps_pace = True
        self._is_paced = False
        self._room = 0
        self._has_room = asyncio.Event()
        self._update_room()
        self._wake = asyncio.Event()
        self._spill_due = asyncio.Event()
        self._finishing = False
        self._ended = False
        self._connection: Connection | None = None
        self._by_product = False
        self._partitions_due = 0.0
        self._away_since: float | None = None
        self._retry_seconds = FIRST_RETRY_SECONDS

        self.keeps = True
        """False while the spool and memory are full: then no frame may be put."""
        self.why_not = ""
        """Why the spool took no more, when that happened last."""
        self.done = 0
        """Frames committed to bronze, as rows or as rejected, with none before them that is not."""
        self.rows_saved = 0
        """Rows committed to coinbase_trades_raw."""
        self.rejected_saved = 0
        """Rows committed to coinbase_frames_rejected."""
        self.batches_saved = 0
        """Batches committed."""

    @property
    def taken(self) -> int:
        """Frames put so far, and those found in the spool.

        `done` reaches what `taken` was at a moment when all frames from before it are in bronze.
        """
        held = len(self._rows) + len(self._writing) + len(self._group)
        return self.done + self._batch_frames + self._spooled + held

    @property
    def buffered(self) -> int:
        """Frames in memory alone, those on their way to the database or the disk included."""
        on_the_way = 0
        if not self._batch_is_spooled:
            on_the_way = sum(map(len, self._chunks)) + len(self._rejected)
        return len(self._rows) + on_the_way + len(self._writing) + len(self._group)

    @property
    def spooled(self) -> int:
        """Frames in the spool, those on their way to the database included."""
        return self._spool.records

    @property
    def spooled_bytes(self) -> int:
        """Bytes of the spool on disk."""
        return self._spool.size

    async def open(self) -> None:
        """Open the spool; what an earlier run left there goes to bronze before anything new.

        Raises:
            FatalSpoolError: the spool can't be used.

        """
        await asyncio.to_thread(self._spool.open)
        self._spooled = self._spool.records
        if self._spooled:
            self._begin_spilling()

    def put(self, row: TradeRow | RejectedRow) -> bool:
        """Take a frame; return whether there is room for another."""
        incoming = self._incoming
        incoming.append(row)
        waiting = len(incoming)
        if waiting == self._batch_size:
            self._wake.set()
            self._spill_due.set()
        return waiting < self._room or self._has_more_room()

    def put_rejected(self, row: RejectedRow) -> bool:
        """Take a frame that jsonb can't hold; return whether there is room for another."""
        return self.put(row)

    def track(self, session: FeedSession) -> None:
        """Save this session now, as batches land, and when it has ended."""
        if session.session_id not in self._sessions:
            self._sessions[session.session_id] = session
        self._wake.set()

    async def room(self) -> None:
        """Wait until there is room for another frame, or none can be kept."""
        if self._is_paced:
            self._has_room.clear()
            try:
                async with asyncio.timeout(AHEAD_SECONDS):
                    await self._has_room.wait()
            except TimeoutError:
                self._lose_pace()
        while self._is_spilling and self.keeps and len(self._group) >= self._room:
            self._spill_due.set()
            self._has_room.clear()
            await self._has_room.wait()

    def finish(self) -> None:
        """Let `run` return once everything is saved."""
        self._finishing = True
        self._wake.set()

    async def run(self) -> None:
        """Save what is put, until `finish` is called and nothing is left.

        However it ends, what bronze has not got is then in the spool, as far as the disk has room;
        `buffered` tells what is not.

        Raises:
            FatalBronzeError: at the start, bronze can't be written with these settings.
            DamagedSpoolError: what was in the spool can't be read any more.

        """
        saving = asyncio.create_task(self._save_all())
        spilling = asyncio.create_task(self._spill())
        try:
            await asyncio.wait({saving, spilling}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not saving.done():
                saving.cancel()
                await asyncio.wait({saving})
            # Not cancelled: nobody would know what of a group is on the disk.
            self._ended = True
            self._refuse("the ingester is stopping")
            self._spill_due.set()
            await asyncio.wait({spilling})
            await asyncio.to_thread(self._spool.close)
        spilling.result()
        saving.result()

    async def _save_all(self) -> None:
        try:
            await self._start()
            while not (self._finishing and self._is_idle()):
                await self._wait()
                if not self._is_idle() or self._partitions_due <= time.monotonic():
                    await self._try(self._save)
            if self._connection is not None:
                with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                    await self._connection.close(timeout=5)
                self._connection = None
        finally:
            self._drop_connection()

    async def _wait(self) -> None:
        """Wait for a full batch, or for the flush interval."""
        retrying = self._away_since is not None and not self._is_idle()
        enough = len(self._rows) >= min(self._batch_size, self._max_buffered)
        at_hand = self._rows or self._spooled or self._batch_frames
        # What is being written to the spool can't be taken before it is there.
        for_disk = self._writing and not at_hand
        if not for_disk and (retrying or self._finishing or enough or self._is_spilling):
            return
        self._wake.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._flush_interval):
                await self._wake.wait()

    def _is_idle(self) -> bool:
        is_saved = self.taken == self.done and not self._is_spilling
        return is_saved and not any(map(self._is_due, self._sessions))

    async def _start(self) -> None:
        """Find out whether bronze can be written; wait for a database that is away.

        Only the first answer may be fatal: one that comes after a wait may be of a database that is
        not migrated yet, and by then there are frames to lose.
        """
        first = True
        while not await self._try(self._check, fatal=first):
            first = False
            if self._finishing and self._is_idle():
                return

    async def _try(self, step: Callable[[], Awaitable[None]], *, fatal: bool = False) -> bool:
        """Do a step; where it fails, decide whether to give up, and wait before the next try."""
        try:
            await step()
        except DamagedSpoolError:
            raise
        except Exception as error:  # Whatever fails: the batch must not be dropped.
            self._drop_connection()
            origin = _origin(error)
            permanent = isinstance(origin, _PERMANENT)
            if fatal and permanent:
                raise FatalBronzeError(_told(error)) from error
            await self._pause(error, permanent=permanent)
            return False
        if self._away_since is not None:
            away = time.monotonic() - self._away_since
            log.info(
                "bronze_back",
                away_seconds=round(away, 1),
                buffered=self.buffered,
                spooled=self.spooled,
            )
            self._away_since = None
            self._retry_seconds = FIRST_RETRY_SECONDS
        return True

    async def _pause(self, error: Exception, *, permanent: bool) -> None:
        """Log why bronze took nothing and wait, longer each time."""
        if self._away_since is None:
            self._away_since = time.monotonic()
            self._lose_pace()
        # Half fixed, half random: a restarted database is not met by all its writers at once.
        delay = self._retry_seconds * random.uniform(0.5, 1)  # noqa: S311  (no secret)
        self._retry_seconds = min(self._retry_seconds * 2, LONGEST_RETRY_SECONDS)
        tell = log.error if permanent else log.warning
        tell(
            "bronze_unreachable",
            error=str(error) or type(error).__name__,
            retry_in=round(delay, 2),
            buffered=self.buffered,
            spooled=self.spooled,
        )
        await asyncio.sleep(delay)

    async def _connected(self) -> Connection:
        if self._connection is None or self._connection.is_closed():
            self._connection = await open_bronze(self._connect)
            self._by_product = await self._connection.fetchval(_EACH_ROW_HAS_A_PRODUCT)
        return self._connection

    def _drop_connection(self) -> None:
        """Give the connection up: after a failover, only a new one reaches the new primary."""
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    async def _check(self) -> None:
        """Write no rows to each table: that needs all the tables and rights that rows need."""
        connection = await self._connected()
        await self._copy(connection, "coinbase_trades_raw", TRADE_COLUMNS, [])
        await self._copy(connection, "coinbase_frames_rejected", REJECTED_COLUMNS, [])
        await self._copy(connection, "feed_sessions", _SESSION_COLUMNS, [])
        await connection.execute(_CHECK)
        await self._make_partitions(connection)

    async def _save(self) -> None:
        """Save one batch, and what else is due.

        Each part leaves the buffer as soon as it is committed, so a retry sends only the rest.
        """
        connection = await self._connected()
        if self._partitions_due <= time.monotonic():
            await self._make_partitions(connection)
        if not self._batch_frames:
            await self._take_batch()
        if self._chunks:
            began = time.monotonic()
            await self._save_chunks(connection)
            self.batches_saved += 1
            self._on_batch(time.monotonic() - began)
        if self._rejected:
            await self._save_rejected(connection)
        if self._batch_is_spooled:
            await asyncio.to_thread(self._spool.acknowledge)
            self._batch_is_spooled = False
        self.done += self._batch_frames
        self._batch_frames = 0
        self._keeps_pace = self._keeps_pace or len(self._rows) < self._ahead
        self._update_room()
        due = [session for found, session in self._sessions.items() if self._is_due(found)]
        if due:
            await self._save_sessions(connection, due)

    async def _take_batch(self) -> None:
        """Take the oldest frames: they are in memory, then in the spool, then in the group."""
        if self._is_spilling and not (self._rows or self._spooled or self._writing):
            self._end_spilling()
        rows: list[_Row]
        if self._spooled and not self._rows:
            rows = await asyncio.to_thread(self._read_spool)
            self._spooled -= len(rows)
            self._batch_is_spooled = True
        else:
            size = min(len(self._rows), self._batch_size)
            rows = [self._rows.popleft() for _ in range(size)]
        self._batch_frames = len(rows)
        trades = [row for row in rows if not isinstance(row, RejectedRow)]
        if trades:
            self._chunks.append(trades)
        if len(trades) < len(rows):
            self._rejected.extend(row for row in rows if isinstance(row, RejectedRow))
        self._update_room()

    async def _save_chunks(self, connection: Connection) -> None:
        """Save the batch; where PostgreSQL refuses a frame in it, find that one by halving.

        What takes longer than a statement may is halved as well, for the next try.
        """
        while self._chunks:
            chunk = self._chunks[-1]
            rows = _rows_by_product(chunk) if self._by_product else chunk
            try:
                await self._copy(connection, "coinbase_trades_raw", TRADE_COLUMNS, rows)
            except (TimeoutError, asyncpg.QueryCanceledError):
                if len(chunk) > 1:
                    self._halve()
                raise
            except _BAD_DATA as error:
                if len(chunk) > 1:
                    self._halve()
                else:
                    self._chunks.pop()
                    self._rejected.append(_rejected(chunk[0], error))
                    self._on_refused(chunk[0])
            else:
                self._chunks.pop()
                self.rows_saved += len(chunk)
            self._update_room()

    def _halve(self) -> None:
        chunk = self._chunks.pop()
        middle = len(chunk) // 2
        self._chunks += [chunk[middle:], chunk[:middle]]

    async def _save_rejected(self, connection: Connection) -> None:
        saved_before, first_error = self.rejected_saved, self._rejected[0].error
        while self._rejected:
            rows = list(islice(self._rejected, REJECTED_ROWS))
            await self._copy(connection, "coinbase_frames_rejected", REJECTED_COLUMNS, rows)
            for _ in rows:
                self._rejected.popleft()
            self.rejected_saved += len(rows)
            self._update_room()
        # One line for all of them: a feed gone bad would flood the log.
        frames = self.rejected_saved - saved_before
        log.warning("frames_rejected", frames=frames, first_error=first_error)

    def _is_due(self, session_id: UUID) -> bool:
        """Tell whether a session is to be saved: it is new, it has ended, or it has gone on."""
        session, saved = self._sessions[session_id], self._saved_sessions.get(session_id)
        if saved is None or session.ended_at is not None:
            return True
        return saved.frames != session.frames and time.monotonic() - saved.at >= SESSION_SECONDS

    async def _save_sessions(self, connection: Connection, sessions: list[FeedSession]) -> None:
        """Save sessions in one go: of many connections, each would else hold up the next batch."""
        rows = [
            (
                session.session_id,
                session.source,
                session.url,
                list(session.products),
                session.started_at,
                session.ended_at,
                session.frames,
                session.trades,
                session.end_reason,
            )
            for session in sessions
        ]
        await connection.executemany(_SAVE_SESSION, rows, timeout=COMMAND_SECONDS)
        now = time.monotonic()
        for session_id, _source, _url, _products, _started_at, ended_at, frames, *_ in rows:
            if ended_at is None:
                self._saved_sessions[session_id] = _Saved(now, frames)
            else:
                del self._sessions[session_id]
                self._saved_sessions.pop(session_id, None)

    async def _make_partitions(self, connection: Connection) -> None:
        """Make the partitions of the coming days; without them rows go to the default partition."""
        wait = PARTITIONS_SECONDS
        try:
            await connection.execute("select bronze.make_partitions()", timeout=COMMAND_SECONDS)
        except asyncpg.PostgresError as error:
            log.warning("partitions_not_made", error=str(error))
            wait = PARTITIONS_RETRY_SECONDS
        self._partitions_due = time.monotonic() + wait

    async def _copy(
        self,
        connection: Connection,
        table: str,
        columns: tuple[str, ...],
        rows: list[TradeRow] | list[RejectedRow],
    ) -> None:
        await connection.copy_records_to_table(
            table, schema_name="bronze", columns=columns, records=rows, timeout=COMMAND_SECONDS
        )

    def _update_room(self) -> None:
        if self._is_spilling:
            self._room = GROUP_BATCHES * self._batch_size - len(self._writing)
            self._is_paced = False
        else:
            on_the_way = sum(map(len, self._chunks)) + len(self._rejected)
            self._room = self._max_buffered - on_the_way
            self._is_paced = self._keeps_pace and self._ahead < self._room
            if self._is_paced:
                self._room = self._ahead
        if len(self._incoming) < self._room:
            self._has_room.set()

    def _lose_pace(self) -> None:
        """Use memory up to its bound, until the database has caught up."""
        self._keeps_pace = False
        self._update_room()

    @property
    def _is_spilling(self) -> bool:
        return self._incoming is self._group

    def _has_more_room(self) -> bool:
        """Let the spool take what memory can't; what comes faster than it is written waits."""
        if self._is_spilling or self._is_paced:
            return False
        log.warning("spilling", buffered=self.buffered)
        self._begin_spilling()
        return True

    def _begin_spilling(self) -> None:
        self._incoming = self._group
        self._update_room()
        self._spill_due.set()

    def _end_spilling(self) -> None:
        """Let memory take the frames again: the spool is empty."""
        self._rows.extend(self._group)
        self._group.clear()
        self._incoming = self._rows
        self.keeps = True
        self._update_room()
        log.info("spool_drained")

    def _refuse(self, reason: str) -> None:
        self.keeps = False
        self.why_not = reason
        self._has_room.set()

    async def _spill(self) -> None:
        """Write what memory can't hold to the spool, and at the end what memory holds as well."""
        while not self._ended:
            await self._wait_for_group()
            if self._group:
                await self._write_group()
        await self._spill_rest()

    async def _wait_for_group(self) -> None:
        """Wait for a full batch, or for the flush interval while the spool is in use."""
        self._spill_due.clear()
        if self._ended:
            return
        patience = None
        if self._is_spilling:
            patience = self._flush_interval if self.keeps else FULL_RETRY_SECONDS
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self._spill_due.wait()

    async def _write_group(self, *, bounded: bool = True) -> None:
        rows = self._writing = list(self._group)
        self._group.clear()
        self._update_room()
        kept = len(rows)
        try:
            await asyncio.to_thread(lambda: self._spool.append(_packed(rows), bounded=bounded))
        except SpoolFullError as error:
            kept = error.kept
            self._refuse(error.reason)
        else:
            self.keeps = not self._ended
        self._writing = []
        self._spooled += kept
        self._group.extendleft(reversed(rows[kept:]))
        self._update_room()
        self._wake.set()

    async def _spill_rest(self) -> None:
        """Keep what is left in memory, beyond the spool's bound: it would be lost else."""
        if not self._batch_is_spooled:
            chunks = [row for chunk in reversed(self._chunks) for row in chunk]
            self._rows.extendleft(reversed([*self._rejected, *chunks]))
            self._batch_frames = 0
        self._chunks.clear()
        self._rejected.clear()
        rows = list(self._rows)
        kept = len(rows)
        try:
            await asyncio.to_thread(lambda: self._spool.prepend(_packed(rows)))
        except SpoolFullError as error:
            kept = error.kept
            self._refuse(error.reason)
        self._spooled += kept
        for _ in range(kept):
            self._rows.popleft()
        if self._group:
            await self._write_group(bounded=False)

    def _read_spool(self) -> list[_Row]:
        return [_unpacked(record) for record in self._spool.read(self._batch_size)]


def _rows_by_product(rows: Iterable[TradeRow]) -> list[TradeRow]:
    """Return rows that all have a product, for Citus spreads bronze by it.

    A frame of several products is there once under each, and one that names none under ''.
    """
    found: list[TradeRow] = []
    for row in rows:
        received_at, source, channel, session_id, product_id, frame = row
        named = products_in(channel, frame) if product_id is None else {product_id}
        names = sorted(named) or [""]
        found.extend((received_at, source, channel, session_id, name, frame) for name in names)
    return found


def _packed(rows: Iterable[_Row]) -> list[bytes]:
    """Return rows as the spool keeps them."""
    return [_packed_row(row) for row in rows]


def _packed_row(row: _Row) -> bytes:
    try:
        return _PACK(row)
    except UnicodeEncodeError as error:
        # Half a surrogate pair in a product id, which PostgreSQL would refuse as well.
        if isinstance(row, RejectedRow):
            raise
        return _PACK(_rejected(row, error))


def _unpacked(record: bytes) -> _Row:
    return _UNPACK_TRADE(record) if record[0] == _TRADE_BEGINS else _UNPACK_REJECTED(record)


def _rejected(row: TradeRow, error: Exception) -> RejectedRow:
    """Return a row that PostgreSQL refuses as one that it takes."""
    received_at, source, _channel, session_id, _product_id, frame = row
    detail = getattr(error, "detail", None)
    reason = f"refused by jsonb: {getattr(error, 'message', None) or error}"
    if detail:
        reason = f"{reason} ({detail})"
    return RejectedRow(received_at, source, session_id, frame, reason)


def _origin(error: BaseException) -> BaseException:
    """Return the error that began it: whoever connects for us may have worded it anew."""
    while (context := error.__cause__ or error.__context__) is not None:
        error = context
    return error


def _told(error: Exception) -> str:
    if not isinstance(error, asyncpg.PostgresError):
        return str(error)
    if isinstance(error, asyncpg.InvalidAuthorizationSpecificationError):
        return f"PostgreSQL refused the ingester: {error}. Check its user and password."
    return (
        f"Bronze can't be written: {error}. Run `medallion migrate` to make what is missing, "
        "or check that PGHOST, PGPORT and PGDATABASE name the right database."
    )
