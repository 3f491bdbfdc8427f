"""Wires feeds, bookkeeping, bronze and repair together: one capture from Coinbase to bronze."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from types import FrameType
from typing import Final
from uuid import uuid4

import structlog

from ingestion.bookkeeping import Bookkeeper
from ingestion.bronze import BronzeWriter, Connect, FeedSession, TradeRow
from ingestion.coinbase.feed import AdvancedFeed, ExchangeFeed, Feed
from ingestion.coinbase.rest import RestClient
from ingestion.continuity import GapWatch, TradeIdTracker
from ingestion.errors import (
    FatalFeedError,
    IngestionError,
    LedgerAwayError,
    UnsavedFramesError,
)
from ingestion.gaps import GapLedger
from ingestion.metrics import CaptureMetrics, CaptureStats, serve
from ingestion.repair import SOURCE as REST_SOURCE
from ingestion.repair import Repairer
from ingestion.settings import IngestionSettings
from ingestion.sink import Intake, Sink
from ingestion.spool import Spool
from ingestion.subscriptions import Subscriptions

log = structlog.get_logger(__name__)

SOURCES: Final[dict[type[Feed], str]] = {ExchangeFeed: "exchange_ws", AdvancedFeed: "advanced_ws"}
GAP_GRACE_SECONDS: Final = 5.0
"""A gap is told when it has stood this long: before, its trades may just be late."""


class Capture:
    """Records the trades of some products until it is stopped, and repairs their gaps.

    Args:
        settings: what to record and how.
        connect: opens a database connection that may insert into bronze.

    """

    def __init__(self, settings: IngestionSettings, connect: Connect) -> None:
        self._settings = settings
        self._tracker = TradeIdTracker()
        self._gaps = GapWatch(self._tracker, GAP_GRACE_SECONDS)
        self._ledger = GapLedger(connect)
        self._metrics = CaptureMetrics(lambda: self.stats, self.missing_trades)
        self._writer = BronzeWriter(
            connect,
            Spool(settings.spool_dir, settings.spool_max_megabytes * 10**6),
            batch_size=settings.batch_size,
            flush_interval=settings.flush_interval_seconds,
            max_buffered=settings.max_buffered_frames,
            on_batch=self._metrics.batch_seconds.observe,
            on_refused=self._refused,
        )
        self._intake = Intake(self._writer)
        self._sinks: list[Sink] = []
        self._rest = RestClient(settings.rest_url)
        self._repairs = FeedSession(uuid4(), REST_SOURCE, settings.rest_url, (), datetime.now(UTC))
        self._repairer = Repairer(
            self._ledger, self._rest, self._repairs.session_id, on_trades=self._count_repaired
        )
        self._books = Bookkeeper(
            self._tracker,
            self._gaps,
            self._writer,
            self._ledger,
            self._rest,
            self._repairer.look,
            all_products=settings.all_products,
        )
        self._subscriptions = Subscriptions(
            settings,
            self._rest,
            sink=self._new_sink,
            on_products=self._books.follow,
            on_listed=self._books.begin,
            on_delisted=self._books.check,
        )
        self._stop = asyncio.Event()

    @property
    def stats(self) -> CaptureStats:
        """The counts of now."""
        writer, sinks = self._writer, self._sinks
        last_frames = [sink.last_frame_at for sink in sinks if sink.last_frame_at is not None]
        by_type = Counter(match=0, last_match=0)
        for sink in sinks:
            by_type.update(sink.frames_by_type())
        return CaptureStats(
            started_at=self._repairs.started_at,
            frames=by_type.total(),
            trades=sum(sink.trades for sink in sinks),
            rows=writer.rows_saved,
            batches=writer.batches_saved,
            rejected=writer.rejected_saved,
            reconnects=sum(max(sink.connections - 1, 0) for sink in sinks),
            buffered=writer.buffered,
            spooled=writer.spooled,
            spooled_bytes=writer.spooled_bytes,
            not_kept=self._intake.not_kept,
            repaired=self._repairs.trades,
            frames_by_type=dict(by_type),
            seconds_since_last_frame=time.monotonic() - max(last_frames) if last_frames else None,
        )

    def missing_trades(self) -> dict[str, int]:
        """Return how many trades are missing now, per product; those just late are among them."""
        return self._books.missing_trades()

    def stop(self) -> None:
        """Stop reading; `run` then saves what is buffered and returns."""
        self._stop.set()

    async def run(self) -> CaptureStats:
        """Record until `stop` is called, and return the final counts.

        Raises:
            FatalFeedError: the feed can't be read; what it had brought is saved.
            FatalBronzeError: at the start, bronze can't be written.
            MetricsPortError: the port for the metrics can't be opened.
            FatalSpoolError: the spool can't be used.
            DamagedSpoolError: what was in the spool can't be read any more.
            UnsavedFramesError: stopped while the database was away and the spool full.

        """
        try:
            with serve(self._metrics.registry, self._settings.metrics_port):
                await self._writer.open()
                async with self._rest, asyncio.TaskGroup() as tasks:
                    writing = tasks.create_task(self._writer.run())
                    keeping = tasks.create_task(self._books.run())
                    repairing = tasks.create_task(self._repairer.run())
                    try:
                        await self._read_until_stopped()
                    finally:
                        keeping.cancel()
                        repairing.cancel()
                        await self._drain(writing)
        except* IngestionError as group:
            # The first says why it ended; others only follow from it.
            fatal = group.exceptions[0]
        else:
            stats = self.stats
            log.info("drained", trades=stats.trades, rows=stats.rows, rejected=stats.rejected)
            return stats
        finally:
            self._ledger.close()
            if self._writer.spooled:
                log.warning("frames_left_in_spool", frames=self._writer.spooled)
            if self._writer.buffered:
                log.error("frames_lost", frames=self._writer.buffered)
        raise fatal

    async def _read_until_stopped(self) -> None:
        reading = asyncio.create_task(self._subscriptions.run())
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({reading, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                reading.result()
        except FatalFeedError as error:
            # Told now: draining may fail too, and its own error would hide this one.
            log.error("feed_given_up", reason=str(error))  # noqa: TRY400  (no traceback for users)
            raise
        finally:
            reading.cancel()
            stopping.cancel()
            await asyncio.gather(reading, stopping, return_exceptions=True)

    async def _drain(self, writing: asyncio.Task[None]) -> None:
        """Wait until everything is saved, as long as the database takes something.

        What it doesn't take goes to the spool.
        """
        patience = self._settings.drain_seconds
        if not writing.done():
            log.info("draining", buffered=self._writer.buffered, drain_seconds=patience)
        if self._repairs.trades:
            self._repairs.ended_at = datetime.now(UTC)
            self._repairs.end_reason = "stopped"
            self._writer.track(self._repairs)
        self._writer.finish()
        left = None
        while not writing.done() and left != self._writer.buffered:
            left = self._writer.buffered
            await asyncio.wait({writing}, timeout=patience)
        if writing.done():
            await self._close_books()
            return
        writing.cancel()
        await asyncio.wait({writing})
        if self._writer.buffered:
            raise UnsavedFramesError(self._writer.buffered, patience, self._writer.why_not)
        log.warning("session_end_unsaved")

    async def _close_books(self) -> None:
        if self._writer.done < self._writer.taken:
            return
        try:
            await self._books.close()
        except LedgerAwayError as error:
            # What it would have noted is read back at the next start.
            log.warning("books_not_closed", error=str(error))

    def _refused(self, row: TradeRow) -> None:
        self._books.refused(row)

    def _new_sink(self, kind: type[Feed]) -> Sink:
        sink = Sink(
            SOURCES[kind],
            self._writer,
            self._intake,
            self._tracker,
            self._gaps,
            self._books.check,
        )
        self._sinks.append(sink)
        return sink

    def _count_repaired(self, trades: int) -> None:
        self._repairs.trade_frames += trades
        self._repairs.trades += trades
        self._writer.track(self._repairs)


@contextmanager
def stop_on_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` on SIGINT and SIGTERM while the context lasts, from within a running event loop.

    Only the first signal is caught: a second one ends the process at once, as if unhandled.
    """
    loop = asyncio.get_running_loop()
    handled = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in handled}

    def restore() -> None:
        for number in handled:
            with suppress(NotImplementedError):
                loop.remove_signal_handler(number)
            signal.signal(number, before[number])

    def first() -> None:
        restore()
        stop()

    def on_windows(_number: int, _frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(first)

    for number in handled:
        try:
            loop.add_signal_handler(number, first)
        except NotImplementedError:
            signal.signal(number, on_windows)
    try:
        yield
    finally:
        restore()
