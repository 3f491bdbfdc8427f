"""What happens to a frame: it is counted, its trade ids are followed, and it goes to the buffer."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final
from uuid import uuid4

import structlog

from ingestion.bronze import BronzeWriter, FeedSession, RejectedRow
from ingestion.coinbase.wire import (
    MARKET_TRADES_CHANNEL,
    TRADE_CHANNEL,
    AdvancedMessage,
    Message,
    trade_number,
)
from ingestion.continuity import GapWatch, TradeIdTracker

log = structlog.get_logger(__name__)

NOT_KEPT_SECONDS: Final = 60.0
"""While frames are not kept, their count is told this often."""

_KNOWN_TYPES: Final = frozenset({"subscriptions", "error", "heartbeats"})
_MOST_TYPES_LOGGED: Final = 100


class Intake:
    """Tells whether frames can be kept; counts and reports those that can't.

    Args:
        writer: keeps them, in memory or on disk.

    """

    def __init__(self, writer: BronzeWriter) -> None:
        self._writer = writer
        self._told_at: float | None = None
        self._tells_when_kept = False
        self.not_kept = 0
        """Frames that came while memory and spool were full."""

    def keeps(self) -> bool:
        """Tell whether the frame at hand can be kept."""
        if self._writer.keeps:
            if self._tells_when_kept:
                self._tells_when_kept = False
                log.warning("frames_kept_again", not_kept=self.not_kept)
            return True
        self.not_kept += 1
        now = time.monotonic()
        if self._told_at is None or now - self._told_at >= NOT_KEPT_SECONDS:
            self._told_at = now
            self._tells_when_kept = True
            log.error("frames_not_kept", not_kept=self.not_kept, reason=self._writer.why_not)
        return False


class Sink:
    """Takes the frames of one feed, connection after connection.

    Args:
        source: marks its rows in bronze.
        writer: saves them.
        intake: tells whether it has a place for another.
        tracker: follows the trade ids of all feeds.
        gaps: is told when some are missing.
        on_dropped: is told the products of which frames may have been dropped.

    """

    def __init__(
        self,
        source: str,
        writer: BronzeWriter,
        intake: Intake,
        tracker: TradeIdTracker,
        gaps: GapWatch,
        on_dropped: Callable[[tuple[str, ...]], None],
    ) -> None:
        self._source = source
        self._writer = writer
        self._intake = intake
        self._tracker = tracker
        self._gaps = gaps
        self._on_dropped = on_dropped
        self._session: FeedSession
        self._received_at: datetime
        self._types_logged: set[str] = set()
        self._matches = self._last_matches = self._market_trades = 0
        self._other_frames: Counter[str] = Counter()
        self.trades = 0
        """Trades received."""
        self.connections = 0
        """Connections so far."""
        # Not the wall clock: where that is set back, a silent feed would look alive.
        self.last_frame_at: float | None = None
        """When the newest frame came, in seconds of the monotonic clock."""

    def frames_by_type(self) -> Counter[str]:
        """Return how many frames came, by type."""
        carriers = Counter(
            match=self._matches, last_match=self._last_matches, market_trades=self._market_trades
        )
        return carriers + self._other_frames

    def opened(self, url: str, products: tuple[str, ...]) -> None:
        """Begin a session."""
        self.connections += 1
        self._session = FeedSession(uuid4(), self._source, url, products, datetime.now(UTC))

    def subscribed(self, products: tuple[str, ...]) -> None:
        """Save the session, now that its products are known."""
        self._session.products = products
        self._writer.track(self._session)

    def closed(self, reason: str) -> None:
        """End the session."""
        self._session.ended_at = datetime.now(UTC)
        self._session.end_reason = reason
        self._writer.track(self._session)

    def arrived(self) -> None:
        """Note when the frames that follow came."""
        self.last_frame_at = time.monotonic()
        self._received_at = datetime.now(UTC)

    def match(self, frame: bytes, message: Message) -> bool:
        """Follow the trade id and buffer the frame."""
        if message.kind == "match":
            self._matches += 1
        else:
            self._last_matches += 1
        self.trades += 1
        product_id, trade_id = message.product_id, message.trade_id
        if type(product_id) is not str:
            product_id = trade_id = None
        elif type(trade_id) is not int:
            trade_id = trade_number(trade_id)
        if trade_id is not None and self._skips(product_id, trade_id):
            self._gaps.add(product_id, time.monotonic())
        return self._put(TRADE_CHANNEL, product_id, frame, 1)

    def market_trades(self, frame: bytes, message: AdvancedMessage) -> bool:
        """Follow the trade ids and buffer the frame."""
        self._market_trades += 1
        trades = message.trades()
        self.trades += len(trades)
        products = message.products()
        for product_id in {name for name, trade_id in trades if self._skips(name, trade_id)}:
            self._gaps.add(product_id, time.monotonic())
        only = products.pop() if len(products) == 1 else None
        return self._put(MARKET_TRADES_CHANNEL, only, frame, len(trades))

    def _skips(self, product_id: str, trade_id: int) -> bool:
        """Follow a trade id; tell whether some are missing now."""
        if self._writer.keeps:
            return self._tracker.observe(product_id, trade_id)
        # Known of but not kept: so it is missing.
        return self._tracker.miss(product_id, trade_id)

    def unreadable(self, frame: bytes, error: str) -> bool:
        """Buffer a frame that jsonb can't hold."""
        self._count("unreadable")
        if not self._intake.keeps():
            return True
        return self._writer.put_rejected(
            RejectedRow(self._received_at, self._source, self._session.session_id, frame, error)
        )

    def heartbeat(self, message: Message) -> None:
        """Learn the newest trade id of a product."""
        self._count("heartbeat")
        last_trade_id = trade_number(message.last_trade_id)
        if (
            isinstance(message.product_id, str)
            and last_trade_id is not None
            and self._tracker.announce(message.product_id, last_trade_id)
        ):
            self._gaps.add(message.product_id, time.monotonic())

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

    def frames_dropped(self, products: tuple[str, ...]) -> None:
        """Have the ids checked: trades may be missing that no later one tells of."""
        self._on_dropped(products)

    async def room(self) -> None:
        """Wait until the buffer has room."""
        await self._writer.room()

    def _put(self, channel: str, product_id: str | None, frame: bytes, trades: int) -> bool:
        session = self._session
        session.trade_frames += 1
        session.trades += trades
        if not self._intake.keeps():
            return True
        return self._writer.put(
            (self._received_at, self._source, channel, session.session_id, product_id, frame)
        )

    def _count(self, kind: str) -> None:
        self._session.other_frames += 1
        self._other_frames[kind] += 1
