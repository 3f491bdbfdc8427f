"""Wires feed, continuity and bronze together: one capture from Coinbase to the database."""

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

from ingestion.bronze import BronzeWriter, Connect, FeedSession, RejectedRow
from ingestion.coinbase.feed import ExchangeFeed
from ingestion.coinbase.wire import TRADE_CHANNEL, Message, trade_number
from ingestion.continuity import Gap, GapWatch, TradeIdTracker
from ingestion.errors import FatalFeedError, IngestionError, UnsavedFramesError
from ingestion.metrics import CaptureMetrics, CaptureStats, serve
from ingestion.settings import IngestionSettings
from ingestion.spool import Spool

log = structlog.get_logger(__name__)

SOURCE: Final = "exchange_ws"
GAP_GRACE_SECONDS: Final = 5.0
"""A gap is told when it has stood this long: before, its trades may just be late."""
GAP_CHECK_SECONDS: Final = 1.0
NOT_KEPT_SECONDS: Final = 60.0
"""While frames are not kept, their count is told this often."""

_KNOWN_TYPES: Final = frozenset({"subscriptions", "error"})
_MOST_TYPES_LOGGED: Final = 100


class Capture:
    """Records the trades of some products until it is stopped.

    Args:
        settings: what to record and how.
        connect: opens a database connection that may insert into bronze.

    """

    def __init__(self, settings: IngestionSettings, connect: Connect) -> None:
        self._settings = settings
        self._tracker = TradeIdTracker()
        self._gaps = GapWatch(self._tracker, GAP_GRACE_SECONDS)
        self._metrics = CaptureMetrics(lambda: self.stats, self._tracker.missing_trades)
        self._writer = BronzeWriter(
            connect,
            Spool(settings.spool_dir, settings.spool_max_megabytes * 10**6),
            batch_size=settings.batch_size,
            flush_interval=settings.flush_interval_seconds,
            max_buffered=settings.max_buffered_frames,
            on_batch=self._metrics.batch_seconds.observe,
        )
        self._sink = _Sink(self._writer, self._tracker, self._gaps)
        self._feed = ExchangeFeed(
            settings.coinbase_ws_url,
            settings.coinbase_products,
            silence_seconds=settings.silence_seconds,
            sink=self._sink,
        )
        self._stop = asyncio.Event()

    @property
    def stats(self) -> CaptureStats:
        """The counts of now."""
        writer, sink = self._writer, self._sink
        return CaptureStats(
            started_at=sink.started_at,
            frames=sink.frames,
            trades=sink.trades,
            rows=writer.rows_saved,
            batches=writer.batches_saved,
            rejected=writer.rejected_saved,
            reconnects=max(sink.connections - 1, 0),
            buffered=writer.buffered,
            spooled=writer.spooled,
            spooled_bytes=writer.spooled_bytes,
            not_kept=sink.not_kept,
            frames_by_type=sink.frames_by_type(),
            seconds_since_last_frame=sink.seconds_since_last_frame(),
        )

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
                async with asyncio.TaskGroup() as tasks:
                    writing = tasks.create_task(self._writer.run())
                    watching = tasks.create_task(self._watch_gaps())
                    try:
                        await self._read_until_stopped()
                    finally:
                        watching.cancel()
                        await self._drain(writing)
        except* IngestionError as group:
            # The first says why it ended; others only follow from it.
            fatal = group.exceptions[0]
        else:
            stats = self.stats
            log.info("drained", trades=stats.trades, rows=stats.rows, rejected=stats.rejected)
            return stats
        finally:
            if self._writer.spooled:
                log.warning("frames_left_in_spool", frames=self._writer.spooled)
            if self._writer.buffered:
                log.error("frames_lost", frames=self._writer.buffered)
        raise fatal

    async def _read_until_stopped(self) -> None:
        reading = asyncio.create_task(self._feed.run())
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
        self._writer.finish()
        left = None
        while not writing.done() and left != self._writer.buffered:
            left = self._writer.buffered
            await asyncio.wait({writing}, timeout=patience)
        if writing.done():
            return
        writing.cancel()
        await asyncio.wait({writing})
        if self._writer.buffered:
            raise UnsavedFramesError(self._writer.buffered, patience, self._writer.why_not)
        log.warning("session_end_unsaved")

    async def _watch_gaps(self) -> None:
        while True:
            await asyncio.sleep(GAP_CHECK_SECONDS)
            found: dict[str, list[Gap]] = {}
            for gap in self._gaps.standing(time.monotonic()):
                found.setdefault(gap.product_id, []).append(gap)
            for product_id, gaps in found.items():
                # Not len(gap): that fails past 64 bits, and an id may be any number.
                trades = sum(gap.last - gap.first + 1 for gap in gaps)
                first, last = gaps[0].first, gaps[-1].last
                log.warning(
                    "gap_found", product_id=product_id, first=first, last=last, trades=trades
                )


class _Sink:
    """Counts the frames, follows their trade ids and puts them into the buffer."""

    def __init__(self, writer: BronzeWriter, tracker: TradeIdTracker, gaps: GapWatch) -> None:
        self._writer = writer
        self._tracker = tracker
        self._gaps = gaps
        self._session: FeedSession
        # Not the wall clock: where that is set back, a silent feed would look alive.
        self._last_frame_at: float | None = None
        self._earlier_trades = 0
        self._last_matches = 0
        self._other_frames: Counter[str] = Counter()
        self._types_logged: set[str] = set()
        self.started_at = datetime.now(UTC)
        self.connections = 0
        self.not_kept = 0
        self._not_kept_told_at: float | None = None
        self._tells_when_kept = False

    @property
    def trades(self) -> int:
        """Trades received."""
        return self._earlier_trades + (self._session.trades if self.connections else 0)

    @property
    def frames(self) -> int:
        """Frames received."""
        return self.trades + self._other_frames.total()

    def frames_by_type(self) -> dict[str, int]:
        """Return how many frames came, by type."""
        matches = self.trades - self._last_matches
        return {"match": matches, "last_match": self._last_matches, **self._other_frames}

    def seconds_since_last_frame(self) -> float | None:
        """Return the age of the newest frame, None before the first."""
        if self._last_frame_at is None:
            return None
        return time.monotonic() - self._last_frame_at

    def opened(self, url: str, products: tuple[str, ...]) -> None:
        """Begin a session."""
        self._earlier_trades = self.trades
        self.connections += 1
        self._session = FeedSession(uuid4(), SOURCE, url, products, datetime.now(UTC))

    def subscribed(self, products: tuple[str, ...]) -> None:
        """Save the session, now that its products are known."""
        self._session.products = products
        self._writer.track(self._session)

    def closed(self, reason: str) -> None:
        """End the session."""
        self._session.ended_at = datetime.now(UTC)
        self._session.end_reason = reason
        self._writer.track(self._session)

    def trade(self, frame: bytes, message: Message) -> bool:
        """Follow the trade id and buffer the frame."""
        received_at = datetime.now(UTC)
        self._last_frame_at = time.monotonic()
        session = self._session
        session.trades += 1
        if message.kind != "match":
            self._last_matches += 1
        product_id, trade_id = message.product_id, message.trade_id
        if type(product_id) is str:
            if type(trade_id) is not int:
                trade_id = trade_number(trade_id)
            if trade_id is not None:
                if self._writer.keeps:
                    gap = self._tracker.observe(product_id, trade_id)
                    if gap is not None:
                        self._gaps.add(gap, time.monotonic())
                else:
                    # Known of but not seen: so it is missing, as the next heartbeat will tell.
                    self._tracker.observe_last(product_id, trade_id)
        else:
            product_id = None
        if not self._is_kept():
            return True
        return self._writer.put(
            (received_at, SOURCE, TRADE_CHANNEL, session.session_id, product_id, frame)
        )

    def unreadable(self, frame: bytes, error: str) -> bool:
        """Buffer a frame that jsonb can't hold."""
        self._count("unreadable")
        if not self._is_kept():
            return True
        return self._writer.put_rejected(
            RejectedRow(datetime.now(UTC), SOURCE, self._session.session_id, frame, error)
        )

    def heartbeat(self, message: Message) -> None:
        """Learn the newest trade id of a product."""
        self._count("heartbeat")
        last_trade_id = trade_number(message.last_trade_id)
        if isinstance(message.product_id, str) and last_trade_id is not None:
            gap = self._tracker.observe_last(message.product_id, last_trade_id)
            if gap is not None:
                self._gaps.add(gap, time.monotonic())

    def other(self, kind: object) -> None:
        """Count a frame; tell of an unknown type once."""
        if isinstance(kind, str) and kind in _KNOWN_TYPES:
            self._count(kind)
            return
        self._count("unknown")
        name = str(kind)[:50]
        if name not in self._types_logged and len(self._types_logged) < _MOST_TYPES_LOGGED:
            self._types_logged.add(name)
            log.info("unknown_type_ignored", type=name)

    async def room(self) -> None:
        """Wait until the buffer has room."""
        await self._writer.room()

    def _is_kept(self) -> bool:
        """Tell whether a frame can be kept; count and report the ones that can't."""
        if self._writer.keeps:
            if self._tells_when_kept:
                self._tells_when_kept = False
                log.warning("frames_kept_again", not_kept=self.not_kept)
            return True
        self.not_kept += 1
        now, told_at = time.monotonic(), self._not_kept_told_at
        if told_at is None or now - told_at >= NOT_KEPT_SECONDS:
            self._not_kept_told_at = now
            self._tells_when_kept = True
            log.error("frames_not_kept", not_kept=self.not_kept, reason=self._writer.why_not)
        return False

    def _count(self, kind: str) -> None:
        self._last_frame_at = time.monotonic()
        self._session.other_frames += 1
        self._other_frames[kind] += 1


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
