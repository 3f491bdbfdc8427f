"""The writer and its spool: a real PostgreSQL that is away and back, small bounds, a full disk."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from ingestion.bronze import AHEAD_BATCHES, BronzeWriter, RejectedRow
from ingestion.capture import Capture
from ingestion.errors import UnsavedFramesError
from ingestion.spool import Spool
from tests.integration.test_ingestion_capture import (
    close_database,
    open_database,
    sends,
    settings,
    trade_ids,
)
from tests.integration.test_ingestion_feed import exchange, match, stay, wait_for

pytestmark = pytest.mark.postgres18_only

SESSION = UUID(int=1)
NOW = datetime(2026, 11, 20, 12, 0, 0, 123456, tzinfo=UTC)


class Away:
    """Connects to the test's database, unless it is away."""

    def __init__(self, database: Any) -> None:
        self._database = database
        self.is_away = True

    async def __call__(self) -> Any:
        if self.is_away:
            raise ConnectionRefusedError("away")
        return await self._database.connect("medallion_ingest")


@pytest.fixture
def away(database: Any) -> Away:
    return Away(database)


@asynccontextmanager
async def writing(
    away: Away, folder: Path, *, max_bytes: int = 10**6, max_buffered: int = 20
) -> AsyncIterator[BronzeWriter]:
    writer = BronzeWriter(
        away,
        Spool(folder, max_bytes),
        batch_size=10,
        flush_interval=0.02,
        max_buffered=max_buffered,
    )
    await writer.open()
    run = asyncio.create_task(writer.run())
    await asyncio.sleep(0)
    try:
        yield writer
        writer.finish()
        if away.is_away:
            run.cancel()
        await asyncio.wait({run})
    finally:
        run.cancel()
    if not away.is_away:
        run.result()


async def put(writer: BronzeWriter, first: int, last: int) -> None:
    for trade_id in range(first, last + 1):
        row = (NOW, "exchange_ws", "matches", SESSION, "BTC-USD", match(trade_id).encode())
        if not writer.put(row):
            await writer.room()


async def put_until_full(writer: BronzeWriter, first: int) -> int:
    """Put trades until no more are kept; return the last one."""
    trade_id = first - 1
    while writer.keeps:
        trade_id += 1
        await put(writer, trade_id, trade_id)
        await asyncio.sleep(0)
    return trade_id


async def test_frames_beyond_memory_wait_on_disk_and_land_in_order(
    away: Away, admin: Any, tmp_path: Path
) -> None:
    async with writing(away, tmp_path) as writer:
        await put(writer, 1, 300)
        await wait_for(lambda: writer.spooled == 280 and writer.buffered == 20)
        assert (writer.taken, writer.done) == (300, 0)
        away.is_away = False
        # While the spool is not empty, what is new goes behind it.
        for trade_id in range(301, 600):
            await put(writer, trade_id, trade_id)
            await asyncio.sleep(0)
        await wait_for(lambda: writer.done == writer.taken)
        await put(writer, 600, 610)

    assert await trade_ids(admin) == list(range(1, 611))
    assert (writer.done, writer.spooled, writer.spooled_bytes) == (610, 0, 0)


async def test_frames_on_a_slow_disk_are_waited_for_by_those_behind_them(
    away: Away, admin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = Spool.append

    def slow_append(spool: Spool, *arguments: Any, **options: Any) -> None:
        time.sleep(0.3)
        append(spool, *arguments, **options)

    monkeypatch.setattr(Spool, "append", slow_append)
    async with writing(away, tmp_path) as writer:
        await put(writer, 1, 30)
        # Now the disk has the ones past 20, and memory is saved before it is through with them.
        await asyncio.sleep(0.1)
        away.is_away = False
        await wait_for(lambda: writer.done == 20)
        assert writer.spooled == 0
        await put(writer, 31, 40)
        await wait_for(lambda: writer.done == 40)

    assert await trade_ids(admin) == list(range(1, 41))


async def test_rows_come_back_from_the_spool_as_they_were(
    away: Away, admin: Any, tmp_path: Path
) -> None:
    kept = (NOW, "exchange_ws", "matches", SESSION, None, b'{"a": 1}')
    half = (NOW, "exchange_ws", "matches", SESSION, "\ud800", b'{"b": 2}')
    bad = (NOW, "exchange_ws", "matches", SESSION, "BTC-USD", b'{"c": "\\u0000"}')
    rejected = RejectedRow(NOW, "exchange_ws", SESSION, b"\xff\x00", "not UTF-8: é")
    async with writing(away, tmp_path) as writer:
        await put(writer, 1, 20)
        for row in (kept, half, bad):
            writer.put(row)
        writer.put_rejected(rejected)
        await wait_for(lambda: writer.spooled == 4)
        away.is_away = False

    assert writer.done == writer.taken == 24
    [row] = await admin.fetch(
        "select received_at, source, channel, session_id, product_id, payload "
        "from bronze.coinbase_trades_raw where product_id is null"
    )
    assert tuple(row) == (*kept[:5], '{"a": 1}')
    found = await admin.fetch(
        "select received_at, source, session_id, frame, error from bronze.coinbase_frames_rejected"
        " order by frame"
    )
    assert tuple(found[-1]) == tuple(rejected)
    assert [bytes(row["frame"]) for row in found[:-1]] == [half[-1], bad[-1]]
    assert all(row["error"].startswith("refused by jsonb: ") for row in found[:-1])


async def test_a_stop_without_the_database_puts_memory_ahead_of_the_spool(
    away: Away, admin: Any, tmp_path: Path
) -> None:
    async with writing(away, tmp_path) as writer:
        await put(writer, 1, 50)
        writer.put_rejected(RejectedRow(NOW, "exchange_ws", SESSION, b"x", "not JSON"))
    assert (writer.buffered, writer.spooled) == (0, 51)

    async with writing(away, tmp_path) as writer:
        # Found ones count as taken, and are done before what comes now.
        assert (writer.taken, writer.done) == (51, 0)
        await put(writer, 51, 60)
        assert writer.taken == 61
        away.is_away = False

    assert await trade_ids(admin) == list(range(1, 61))
    assert (writer.done, writer.rejected_saved) == (61, 1)


async def test_done_never_runs_ahead_of_a_rejected_frame(
    away: Away, admin: Any, tmp_path: Path
) -> None:
    revoke = "revoke insert on bronze.coinbase_frames_rejected from medallion_ingest"
    away.is_away = False
    async with writing(away, tmp_path, max_buffered=1000) as writer:
        await put(writer, 1, 1)
        await wait_for(lambda: writer.done == 1)
        await admin.execute(revoke)
        await put(writer, 2, 15)
        taken = writer.taken
        writer.put_rejected(RejectedRow(NOW, "exchange_ws", SESSION, b"x", "not JSON"))
        await put(writer, 16, 30)
        await wait_for(lambda: writer.rows_saved > taken)
        assert writer.done <= taken
        await admin.execute(revoke.replace("revoke", "grant").replace("from", "to"))
        await wait_for(lambda: writer.done == 31, 20)


async def test_at_the_bound_the_oldest_stay_and_room_lets_in_again(
    away: Away, admin: Any, tmp_path: Path
) -> None:
    async with writing(away, tmp_path, max_bytes=10_000) as writer:
        last = await put_until_full(writer, 1)
        assert "reached its bound of 0.01 MB" in writer.why_not
        assert writer.spooled_bytes <= 10_000
        # Nobody is left waiting: what comes is for others to count.
        await asyncio.wait_for(writer.room(), 1)
        away.is_away = False
        await wait_for(lambda: writer.keeps)
        await put(writer, last + 1, last + 5)

    assert last > 40
    assert await trade_ids(admin) == list(range(1, last + 6))


async def test_a_stop_at_the_bound_keeps_what_was_taken(
    away: Away, admin: Any, tmp_path: Path
) -> None:
    async with writing(away, tmp_path, max_bytes=10_000) as writer:
        last = await put_until_full(writer, 1)
        assert writer.buffered > 20
    assert (writer.buffered, writer.spooled) == (0, last)

    away.is_away = False
    async with writing(away, tmp_path, max_bytes=10_000):
        pass
    assert await trade_ids(admin) == list(range(1, last + 1))


async def test_a_full_disk_loses_nothing_that_was_taken(
    away: Away, admin: Any, small_disk: Path
) -> None:
    filler = small_disk / "filler"
    filler.write_bytes(bytes(100_000))
    async with writing(away, small_disk) as writer:
        full = await put_until_full(writer, 1)
        assert "No space left" in writer.why_not
        assert writer.spooled > 300
        assert writer.taken == full
        # The database is still away.
        filler.unlink()
        await wait_for(lambda: writer.keeps)
        last = await put_until_full(writer, full + 1)
        assert last > full + 200
        away.is_away = False

    assert await trade_ids(admin) == list(range(1, last + 1))


async def test_a_full_disk_at_a_stop_keeps_what_was_spooled(
    away: Away, admin: Any, small_disk: Path
) -> None:
    async with writing(away, small_disk) as writer:
        last = await put_until_full(writer, 1)
    left = writer.buffered
    assert left >= 20
    assert writer.spooled == last - left

    away.is_away = False
    async with writing(away, small_disk) as writer:
        pass
    found = await trade_ids(admin)
    assert found == sorted(found)
    assert len(found) == last - left


async def test_what_cannot_be_kept_is_counted_told_and_missing(
    database: Any, server_admin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingestion.sink.NOT_KEPT_SECONDS", 0.0)
    frames = [match(1), *(match(number) for number in range(2, 20_000))]
    with capture_logs() as logs:
        async with exchange(sends(*frames)) as server:
            await close_database(server_admin, database)
            capture = Capture(
                settings(server.url, max_buffered_frames=100, spool_max_megabytes=1),
                lambda: database.connect("medallion_ingest"),
            )
            run = asyncio.create_task(capture.run())
            await wait_for(lambda: capture.stats.trades == 19_999, 20)
            stats = capture.stats
            missing = capture._tracker.missing_trades()
            await open_database(server_admin, database)
            await wait_for(lambda: capture.stats.spooled == 0, 20)
            capture.stop()
            stats = await run

    assert stats.not_kept > 1000
    assert stats.rows + stats.not_kept == stats.trades == 19_999
    assert missing == {"BTC-USD": stats.not_kept}
    told = [entry for entry in logs if entry["event"] == "frames_not_kept"]
    assert {entry["log_level"] for entry in told} == {"error"}
    assert told[-1]["not_kept"] == stats.not_kept
    assert "reached its bound" in told[-1]["reason"]


async def test_frames_not_kept_are_told_once_a_minute_and_when_it_is_over(
    database: Any, server_admin: Any
) -> None:
    more = asyncio.Event()

    async def script(socket: Any, _number: int) -> None:
        await sends_then(socket, range(1, 20_000))
        await more.wait()
        await sends_then(socket, range(20_000, 20_010))
        await stay(socket)

    async def sends_then(socket: Any, numbers: range) -> None:
        for number in numbers:
            await socket.send(match(number))

    with capture_logs() as logs:
        async with exchange(script) as server:
            await close_database(server_admin, database)
            capture = Capture(
                settings(server.url, max_buffered_frames=100, spool_max_megabytes=1),
                lambda: database.connect("medallion_ingest"),
            )
            run = asyncio.create_task(capture.run())
            await wait_for(lambda: capture.stats.trades == 19_999, 20)
            await open_database(server_admin, database)
            await wait_for(lambda: capture.stats.spooled == 0, 20)
            more.set()
            await wait_for(lambda: capture.stats.trades == 20_009)
            capture.stop()
            stats = await run

    events = [e for e in logs if e["event"] in {"frames_not_kept", "frames_kept_again"}]
    assert [(entry["event"], entry["not_kept"]) for entry in events] == [
        ("frames_not_kept", 1),
        ("frames_kept_again", stats.not_kept),
    ]


async def test_a_stop_with_a_full_disk_tells_how_much_is_lost(
    database: Any, server_admin: Any, small_disk: Path
) -> None:
    frames = [match(number) for number in range(1, 3000)]
    async with exchange(sends(*frames)) as server:
        await close_database(server_admin, database)
        capture = Capture(
            settings(server.url, max_buffered_frames=100, spool_dir=small_disk, drain_seconds=0.2),
            lambda: database.connect("medallion_ingest"),
        )
        run = asyncio.create_task(capture.run())
        await wait_for(lambda: capture.stats.not_kept > 0)
        await wait_for(lambda: capture.stats.trades == 2999)
        capture.stop()
        with pytest.raises(UnsavedFramesError, match="No space left on device") as lost:
            await run

    stats = capture.stats
    assert lost.value.frames == stats.buffered > 0
    assert stats.spooled + stats.not_kept + stats.buffered == 2999


async def test_the_socket_waits_for_a_database_that_takes_what_comes(
    away: Away, tmp_path: Path
) -> None:
    most = 0
    away.is_away = False
    async with writing(away, tmp_path, max_buffered=1000) as writer:
        for trade_id in range(1, 1001):
            await put(writer, trade_id, trade_id)
            most = max(most, writer.buffered)

    # What may wait, and the batch on its way.
    assert AHEAD_BATCHES * 10 <= most <= AHEAD_BATCHES * 10 + 10


async def test_memory_is_used_while_the_database_takes_nothing(
    away: Away, admin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingestion.bronze.AHEAD_SECONDS", 0.2)
    away.is_away = False
    async with writing(away, tmp_path, max_buffered=1000) as writer:
        async with admin.transaction():
            await admin.execute("lock table bronze.coinbase_trades_raw in share mode")
            async with asyncio.timeout(5):
                await put(writer, 1, 900)
            assert (writer.buffered, writer.spooled) == (900, 0)
        await wait_for(lambda: writer.done == 900)
        for trade_id in range(901, 1500):
            await put(writer, trade_id, trade_id)
            assert writer.buffered <= AHEAD_BATCHES * 10 + 10

    assert await trade_ids(admin) == list(range(1, 1500))


async def test_a_crowd_of_frames_waits_for_the_disk_and_no_longer(
    away: Away, admin: Any, tmp_path: Path
) -> None:
    async with writing(away, tmp_path, max_bytes=10**8) as writer:
        most = 0

        async def watch(done: Callable[[], bool]) -> None:
            nonlocal most
            while not done():
                most = max(most, writer.buffered)
                await asyncio.sleep(0)

        watching = asyncio.create_task(watch(lambda: writer.taken == 20_000))
        await asyncio.wait_for(put(writer, 1, 20_000), 20)
        await watching
        # Memory, four batches for the disk, and one frame that is taken before the wait.
        assert most <= 20 + 4 * 10 + 1
        away.is_away = False

    assert await trade_ids(admin) == list(range(1, 20_001))
