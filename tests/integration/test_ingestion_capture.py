"""The whole way from a socket to rows in a real PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket as sockets
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from structlog.testing import capture_logs
from websockets.asyncio.server import ServerConnection

from ingestion.bronze import BronzeWriter
from ingestion.capture import Capture, stop_on_signals
from ingestion.errors import (
    FatalBronzeError,
    FatalFeedError,
    MetricsPortError,
)
from ingestion.metrics import CaptureStats
from ingestion.settings import IngestionSettings
from ingestion.spool import Spool
from tests.integration.test_ingestion_feed import (
    Script,
    exchange,
    match,
    refused,
    stay,
    subscriptions,
    wait_for,
)

Admin = asyncpg.Connection


def settings(url: str, **changes: Any) -> IngestionSettings:
    values = {
        "coinbase_ws_url": url,
        "coinbase_products": "BTC-USD",
        "batch_size": 100,
        "flush_interval_seconds": 0.05,
        **changes,
    }
    return IngestionSettings(_env_file=None, **values)


@asynccontextmanager
async def capturing(database: Any, url: str, **changes: Any) -> AsyncIterator[Capture]:
    capture = Capture(settings(url, **changes), lambda: database.connect("medallion_ingest"))
    run = asyncio.create_task(capture.run())
    try:
        yield capture
    finally:
        capture.stop()
        await run


def sends(*frames: str | bytes, after: asyncio.Event | None = None) -> Script:
    """Return a script that sends frames as text and then stays."""

    async def script(socket: ServerConnection, _number: int) -> None:
        await socket.send(subscriptions("BTC-USD"))
        if after is not None:
            await after.wait()
        for frame in frames:
            await socket.send(frame, text=True)
        await stay(socket)

    return script


async def session_saved(admin: Admin) -> None:
    """Wait until the session is in the database, which happens at once, with what has come."""
    async with asyncio.timeout(10):
        while not await admin.fetchval("select count(*) from bronze.feed_sessions"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def trade_ids(admin: Admin) -> list[int]:
    rows = await admin.fetch(
        "select (payload->>'trade_id')::bigint as trade_id "
        "from bronze.coinbase_trades_raw order by bronze_id"
    )
    return [row["trade_id"] for row in rows]


async def rejected(admin: Admin) -> dict[bytes, str]:
    rows = await admin.fetch("select frame, error from bronze.coinbase_frames_rejected")
    assert len({row["frame"] for row in rows}) == len(rows)
    return {row["frame"]: row["error"] for row in rows}


async def close_database(server_admin: Admin, database: Any) -> None:
    await server_admin.execute(f"alter database {database.name} allow_connections false")
    await server_admin.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'medallion_ingest'"
    )


async def open_database(server_admin: Admin, database: Any) -> None:
    await server_admin.execute(f"alter database {database.name} allow_connections true")


async def test_recorded_frames_land_as_they_came(
    database: Any, admin: Admin, recorded_frames: Callable[[str], list[bytes]]
) -> None:
    frames = recorded_frames("coinbase_exchange_2026-09-30.jsonl")
    trades = [frame.decode() for frame in frames if b'match"' in frame]
    before = datetime.now(UTC)

    async with exchange(sends(*frames)) as server:
        async with capturing(database, server.url, coinbase_products="BTC-USD,ETH-USD") as capture:
            await wait_for(lambda: capture.stats.rows == 63 and capture.stats.frames == 85)
        stats = capture.stats

    rows = await admin.fetch(
        "select *, payload = frame::jsonb as is_equal, payload ->> 'product_id' as product "
        "from unnest($1::text[]) with ordinality as sent (frame, number) "
        "full join (select *, row_number() over (order by bronze_id) as number "
        "from bronze.coinbase_trades_raw) as stored using (number) order by number",
        trades,
    )
    assert [row["is_equal"] for row in rows] == [True] * 63
    assert [row["product_id"] for row in rows] == [row["product"] for row in rows]
    assert {(row["source"], row["channel"]) for row in rows} == {("exchange_ws", "matches")}
    assert all(before <= row["received_at"] <= datetime.now(UTC) for row in rows)
    sessions = await admin.fetch("select * from bronze.feed_sessions")
    assert {row["session_id"] for row in rows} == {row["session_id"] for row in sessions}
    assert (stats.trades, stats.rows, stats.rejected, stats.buffered) == (63, 63, 0, 0)
    # One more subscriptions frame than recorded: the server's own.
    assert stats.frames_by_type == {
        "match": 61,
        "last_match": 2,
        "subscriptions": 2,
        "heartbeat": 20,
    }


async def test_a_bad_frame_is_set_aside_alone(database: Any, admin: Admin) -> None:
    head = b'{"type":"match","trade_id":1,'
    bad = {
        b"hello": "not JSON: ",
        head + b'"price":NaN}': "not JSON: ",
        b"[1]": "JSON but no object",
        b'{"type":"match","product_id":"\xff"}': "not UTF-8: ",
        head + b'"maker":"\xff"}': "refused by jsonb: invalid byte sequence",
        head + b'"maker":"\\u0000"}': "refused by jsonb: unsupported Unicode escape sequence",
        head + b'"product_id":"BTC\\u0000"}': "refused by jsonb: ",
        head + b'"maker":"\\ud800"}': "refused by jsonb: invalid input syntax for type json",
        head + b'"product_id":"\\ud800"}': "refused by jsonb: invalid input syntax for type json",
        head + b'"price":1e999999}': "refused by jsonb: ",
        head + b'"x":' + b"[" * 60000 + b"]" * 60000 + b"}": "refused by jsonb: stack depth limit",
    }
    good = [match(trade_id) for trade_id in range(1, 40)]
    frames: list[str | bytes] = list(good)
    for place, frame in enumerate(bad):
        frames.insert(place * 4, frame)

    with capture_logs() as logs:
        async with exchange(sends(*frames)) as server, capturing(database, server.url) as capture:
            await wait_for(lambda: capture.stats.rows + capture.stats.rejected == len(frames))

    assert await trade_ids(admin) == list(range(1, 40))
    errors = await rejected(admin)
    assert errors.keys() == bad.keys()
    for frame, error in errors.items():
        assert error.startswith(bad[frame])
    assert capture.stats.reconnects == 0
    told = [entry["frames"] for entry in logs if entry["event"] == "frames_rejected"]
    assert sum(told) == len(bad)


async def test_a_batch_of_bad_frames_is_one_line_in_the_log(database: Any, admin: Admin) -> None:
    frames = ['{"type":"match","x":"\\u0000"}'] * 30 + ["x"] * 120 + [match(1)]
    saved = asyncio.Event()
    with capture_logs() as logs:
        async with exchange(sends(*frames, after=saved)) as server:
            capture = Capture(
                settings(server.url, batch_size=1000, flush_interval_seconds=60),
                lambda: database.connect("medallion_ingest"),
            )
            run = asyncio.create_task(capture.run())
            await session_saved(admin)
            saved.set()
            await wait_for(lambda: capture.stats.frames == len(frames) + 1)
            capture.stop()
            await run

    assert await trade_ids(admin) == [1]
    assert (capture.stats.rejected, capture.stats.buffered) == (150, 0)
    [line] = [entry for entry in logs if entry["event"] == "frames_rejected"]
    assert (line["frames"], line["log_level"]) == (150, "warning")
    assert line["first_error"].startswith("not JSON: ")


async def test_a_trade_is_stored_whatever_its_values(database: Any, admin: Admin) -> None:
    frames = {
        '{"type":"match"}': None,
        '{"type":"match","product_id":5,"trade_id":"7","price":1.5}': None,
        '{"type":"match","product_id":["BTC-USD"],"trade_id":{}}': None,
        '{"type":"match","product_id":"","trade_id":-1}': "",
        '{"type":"match","product_id":"BTC-USD","trade_id":1e999}': "BTC-USD",
        '{"type":"last_match","product_id":"BTC-USD","note":"%s"}' % ("é" * 500_000): "BTC-USD",
    }
    async with (
        exchange(sends(*frames, '{"type":"status"}', "{}")) as server,
        capturing(database, server.url) as capture,
    ):
        await wait_for(lambda: capture.stats.rows == len(frames))

    rows = await admin.fetch(
        "select product_id, payload = any ($1::text[]::jsonb[]) as is_known "
        "from bronze.coinbase_trades_raw order by bronze_id",
        list(frames),
    )
    assert [row["product_id"] for row in rows] == list(frames.values())
    assert all(row["is_known"] for row in rows)
    assert await rejected(admin) == {}
    assert capture.stats.frames_by_type["unknown"] == 2


async def test_each_connection_leaves_a_session(database: Any, admin: Admin) -> None:
    async def script(socket: ServerConnection, number: int) -> None:
        await socket.send(refused("NOPE-USD"))
        await socket.send(subscriptions("BTC-USD"))
        await socket.send(match(number))
        if number == 0:
            await socket.close(1001, "see you")
        await stay(socket)

    async with (
        exchange(script) as server,
        capturing(database, server.url, coinbase_products="BTC-USD,NOPE-USD") as capture,
    ):
        await wait_for(lambda: capture.stats.rows == 2)
        open_session = None
        async with asyncio.timeout(10):
            while open_session is None:  # It is saved right after its first batch.
                open_session = await admin.fetchrow(
                    "select * from bronze.feed_sessions where ended_at is null"
                )
        assert capture.stats.reconnects == 1
    first, second = await admin.fetch(
        "select s.*, (select count(*) from bronze.coinbase_trades_raw as t "
        "where t.session_id = s.session_id) as stored "
        "from bronze.feed_sessions as s order by started_at"
    )

    assert open_session["session_id"] == second["session_id"]
    for session in (first, second):
        assert (session["url"], session["source"]) == (server.url, "exchange_ws")
        assert session["products"] == ["BTC-USD"]
        assert (session["frames"], session["trades"], session["stored"]) == (3, 1, 1)
        assert session["started_at"] <= session["ended_at"]
    assert (
        first["end_reason"]
        == "received 1001 (going away) see you; then sent 1001 (going away) see you"
    )
    assert second["end_reason"] == "stopped"


def counting(going: asyncio.Event) -> Script:
    """Return a script that counts trades up, a thousand a second, while `going` is set."""

    async def script(socket: ServerConnection, number: int) -> None:
        await socket.send(subscriptions("BTC-USD"))
        trade_id = number * 1_000_000
        while going.is_set():
            for _ in range(10):
                trade_id += 1
                await socket.send(match(trade_id))
            await asyncio.sleep(0.01)
        await stay(socket)

    return script


async def test_nothing_is_lost_while_the_database_is_away(
    database: Any, admin: Admin, server_admin: Admin
) -> None:
    going = asyncio.Event()
    going.set()
    with capture_logs() as logs:
        async with (
            exchange(counting(going)) as server,
            capturing(database, server.url) as capture,
        ):
            await wait_for(lambda: capture.stats.rows > 0)
            await close_database(server_admin, database)
            saved = capture.stats.rows
            await wait_for(lambda: capture.stats.buffered > 500)
            assert capture.stats.rows <= saved + 100
            await open_database(server_admin, database)
            await wait_for(lambda: capture.stats.rows > saved + 600)
            going.clear()

    stored = await trade_ids(admin)
    assert sorted(set(stored)) == list(range(1, capture.stats.trades + 1))
    assert capture.stats.reconnects == 0
    events = [entry["event"] for entry in logs]
    assert events.index("bronze_unreachable") < events.index("bronze_back")


async def test_a_database_away_at_the_start_is_waited_for(
    database: Any, admin: Admin, server_admin: Admin
) -> None:
    await close_database(server_admin, database)
    async with (
        exchange(sends(match(1), match(2))) as server,
        capturing(database, server.url) as capture,
    ):
        await wait_for(lambda: capture.stats.buffered == 2)
        await open_database(server_admin, database)
        await wait_for(lambda: capture.stats.rows == 2)

    assert await trade_ids(admin) == [1, 2]


async def test_a_database_not_migrated_when_it_comes_back_is_waited_for(
    database: Any, admin: Admin, server_admin: Admin
) -> None:
    """Frames came while the database was away: giving up would lose them."""
    revoke = "revoke insert on bronze.coinbase_trades_raw from medallion_ingest"
    await admin.execute(revoke)
    await close_database(server_admin, database)
    with capture_logs() as logs:
        async with (
            exchange(sends(match(1), match(2))) as server,
            capturing(database, server.url) as capture,
        ):
            await wait_for(lambda: any(e["event"] == "bronze_unreachable" for e in logs))
            await wait_for(lambda: capture.stats.buffered == 2)
            await open_database(server_admin, database)
            await wait_for(lambda: any("permission denied" in str(entry) for entry in logs))
            await admin.execute(revoke.replace("revoke", "grant").replace("from", "to"))
            await wait_for(lambda: capture.stats.rows == 2)

    assert await trade_ids(admin) == [1, 2]


async def test_a_batch_too_slow_for_one_statement_lands_in_parts(
    database: Any, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    await admin.execute(
        "create function public.slow() returns trigger language plpgsql "
        "as 'begin perform pg_sleep(0.02); return new; end'; "
        "create trigger slow before insert on bronze.coinbase_trades_raw "
        "for each row execute function public.slow()"
    )
    await admin.execute(
        f"alter role medallion_ingest in database {database.name} set statement_timeout to '500ms'"
    )
    monkeypatch.setattr("ingestion.bronze.LONGEST_RETRY_SECONDS", 0.2)
    frames = [match(trade_id) for trade_id in range(1, 101)]

    async with exchange(sends(*frames)) as server, capturing(database, server.url) as capture:
        await wait_for(lambda: capture.stats.rows == 100, 30)

    assert await trade_ids(admin) == list(range(1, 101))


async def errors_while_locked(database: Any, admin: Admin) -> list[str]:
    """Hold a lock on bronze until 400 trades wait; return what the writer complained of."""
    going = asyncio.Event()
    going.set()
    with capture_logs() as logs:
        async with (
            exchange(counting(going)) as server,
            capturing(database, server.url) as capture,
        ):
            await wait_for(lambda: capture.stats.rows > 0)
            async with admin.transaction():
                await admin.execute("lock table bronze.coinbase_trades_raw in share mode")
                locked_at = capture.stats.rows
                await wait_for(lambda: capture.stats.buffered > 400)
                assert capture.stats.rows <= locked_at + 100
            going.clear()
    stored = await trade_ids(admin)
    assert sorted(set(stored)) == list(range(1, capture.stats.trades + 1))
    return [entry["error"] for entry in logs if entry["event"] == "bronze_unreachable"]


async def test_a_lock_on_bronze_only_delays(database: Any, admin: Admin) -> None:
    assert await errors_while_locked(database, admin) == []


async def test_a_statement_timeout_loses_and_doubles_nothing(database: Any, admin: Admin) -> None:
    await admin.execute(
        f"alter role medallion_ingest in database {database.name} set statement_timeout to '100ms'"
    )

    errors = await errors_while_locked(database, admin)

    assert "statement timeout" in errors[0]
    assert len(set(await trade_ids(admin))) == len(await trade_ids(admin))


async def test_a_lock_timeout_loses_and_doubles_nothing(
    database: Any, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingestion.bronze.LOCK_SECONDS", 0.1)

    errors = await errors_while_locked(database, admin)

    assert "lock timeout" in errors[0]
    assert len(set(await trade_ids(admin))) == len(await trade_ids(admin))


async def test_a_connection_taken_for_dead_loses_nothing(
    database: Any, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingestion.bronze.COMMAND_SECONDS", 0.1)

    assert await errors_while_locked(database, admin)


async def test_rights_lost_while_running_are_waited_for(database: Any, admin: Admin) -> None:
    going = asyncio.Event()
    going.set()
    revoke = "revoke insert on bronze.coinbase_trades_raw from medallion_ingest"
    with capture_logs() as logs:
        async with (
            exchange(counting(going)) as server,
            capturing(database, server.url) as capture,
        ):
            await wait_for(lambda: capture.stats.rows > 0)
            await admin.execute(revoke)
            await wait_for(lambda: capture.stats.buffered > 300)
            await admin.execute(revoke.replace("revoke", "grant").replace("from", "to"))
            going.clear()

    assert await trade_ids(admin) == list(range(1, capture.stats.trades + 1))
    assert any(
        entry["event"] == "bronze_unreachable"
        and entry["log_level"] == "error"
        and "permission denied" in entry["error"]
        for entry in logs
    )


async def test_memory_keeps_its_bound_and_the_spool_the_rest_in_order(
    database: Any, admin: Admin
) -> None:
    frames = [match(trade_id) for trade_id in range(1, 20_001)]
    most = 0
    async with exchange(sends(*frames)) as server:
        async with admin.transaction():
            await admin.execute("lock table bronze.coinbase_trades_raw in share mode")
            capture = Capture(
                settings(server.url, max_buffered_frames=1000),
                lambda: database.connect("medallion_ingest"),
            )
            run = asyncio.create_task(capture.run())
            while capture.stats.trades < 20_000 or capture.stats.buffered > 1000:
                await asyncio.sleep(0)
                most = max(most, capture.stats.buffered)
            assert (capture.stats.buffered, capture.stats.spooled) == (1000, 19_000)
        while capture.stats.rows < 20_000:
            await asyncio.sleep(0)
            most = max(most, capture.stats.buffered)
        capture.stop()
        await run

    # Beside the frames that stay, four batches may be on their way to the disk.
    assert 1000 < most <= 1000 + 4 * 100 + 1
    assert await trade_ids(admin) == list(range(1, 20_001))
    assert capture.stats.reconnects == 0


async def test_a_buffer_full_of_rejected_frames_is_saved_at_once(database: Any) -> None:
    frames: list[str | bytes] = ["x"] * 60 + [match(1)] * 60
    async with exchange(sends(*frames)) as server:
        async with capturing(
            database, server.url, max_buffered_frames=100, flush_interval_seconds=60
        ) as capture:
            await wait_for(lambda: capture.stats.rows + capture.stats.rejected >= 100, 5)
        assert capture.stats.rows + capture.stats.rejected == 120


async def test_stop_saves_what_is_buffered(database: Any, admin: Admin) -> None:
    frames = [match(trade_id) for trade_id in range(1, 31)]
    saved = asyncio.Event()
    async with exchange(sends(*frames, after=saved)) as server:
        capture = Capture(
            settings(server.url, flush_interval_seconds=60),
            lambda: database.connect("medallion_ingest"),
        )
        run = asyncio.create_task(capture.run())
        await session_saved(admin)
        saved.set()
        await wait_for(lambda: capture.stats.trades == 30)
        rows_before = capture.stats.rows
        capture.stop()
        stats = await run

    assert (rows_before, stats.rows, stats.buffered) == (0, 30, 0)
    assert await trade_ids(admin) == list(range(1, 31))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_stops_and_the_old_handling_comes_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    stopped = asyncio.Event()
    with stop_on_signals(stopped.set):
        os.kill(os.getpid(), number)
        await asyncio.wait_for(stopped.wait(), 5)
        assert signal.getsignal(number) == before
    assert signal.getsignal(number) == before


async def test_cancelling_saves_what_is_buffered(database: Any, admin: Admin) -> None:
    async with exchange(sends(match(1), match(2))) as server:
        capture = Capture(
            settings(server.url, flush_interval_seconds=60),
            lambda: database.connect("medallion_ingest"),
        )
        run = asyncio.create_task(capture.run())
        await wait_for(lambda: capture.stats.trades == 2)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run

    assert await trade_ids(admin) == [1, 2]


async def test_an_impatient_stop_leaves_all_in_the_spool(
    database: Any, server_admin: Admin
) -> None:
    with capture_logs() as logs:
        async with exchange(sends(match(1), match(2))) as server:
            await close_database(server_admin, database)
            capture = Capture(settings(server.url), lambda: database.connect("medallion_ingest"))
            run = asyncio.create_task(capture.run())
            await wait_for(lambda: capture.stats.buffered == 2)
            capture.stop()
            await wait_for(lambda: any(entry["event"] == "draining" for entry in logs))
            run.cancel()
            with pytest.raises(asyncio.CancelledError):
                await run

    told = {entry["event"]: entry["frames"] for entry in logs if "frames" in entry}
    assert told == {"frames_left_in_spool": 2}


async def test_a_fatal_feed_is_told_though_the_database_is_away(
    database: Any, server_admin: Admin
) -> None:
    async def script(socket: ServerConnection, _number: int) -> None:
        await socket.send(match(1))
        await socket.send(refused("BTC-USD"))
        await stay(socket)

    with capture_logs() as logs:
        async with exchange(script) as server:
            await close_database(server_admin, database)
            capture = Capture(
                settings(server.url, drain_seconds=0.1),
                lambda: database.connect("medallion_ingest"),
            )
            with pytest.raises(FatalFeedError):
                await capture.run()

    assert capture.stats.spooled == 1
    [told] = [entry["reason"] for entry in logs if entry["event"] == "feed_given_up"]
    assert told.startswith("There is no valid product among BTC-USD")


async def test_a_fatal_feed_saves_what_it_had_brought(database: Any, admin: Admin) -> None:
    async def script(socket: ServerConnection, _number: int) -> None:
        await socket.send(match(1))
        await socket.send(refused("BTC-USD"))
        await stay(socket)

    async with exchange(script) as server:
        capture = Capture(settings(server.url), lambda: database.connect("medallion_ingest"))
        with pytest.raises(FatalFeedError, match="no valid product among BTC-USD"):
            await capture.run()

    assert await trade_ids(admin) == [1]


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("drop schema bronze cascade", "`medallion migrate`"),
        ("drop table bronze.feed_sessions cascade", "`medallion migrate`"),
        ("revoke insert on bronze.coinbase_trades_raw from medallion_ingest", "permission denied"),
    ],
)
async def test_a_database_that_is_not_ready_is_fatal_at_the_start(
    database: Any, admin: Admin, damage: str, told: str
) -> None:
    await admin.execute(damage)
    async with exchange(sends()) as server:
        capture = Capture(settings(server.url), lambda: database.connect("medallion_ingest"))
        with pytest.raises(FatalBronzeError, match=told):
            await asyncio.wait_for(capture.run(), 10)


async def test_a_wrong_password_is_fatal_at_the_start(database: Any) -> None:
    async with exchange(sends()) as server:
        capture = Capture(
            settings(server.url),
            lambda: asyncpg.connect(database.dsn("medallion_ingest"), password="wrong"),
        )
        with pytest.raises(FatalBronzeError, match="Check its user and password"):
            await asyncio.wait_for(capture.run(), 10)


async def test_a_row_that_asyncpg_cannot_encode_is_set_aside_alone(
    database: Any, admin: Admin, tmp_path: Path
) -> None:
    writer = BronzeWriter(
        lambda: database.connect("medallion_ingest"),
        Spool(tmp_path, 10**6),
        batch_size=10,
        flush_interval=0.05,
        max_buffered=100,
    )
    session: UUID = uuid4()
    for trade_id, product_id in [(1, "BTC-USD"), (2, "\ud800"), (3, "BTC-USD")]:
        frame = match(trade_id).encode()
        writer.put((datetime.now(UTC), "exchange_ws", "matches", session, product_id, frame))
    writer.finish()
    await writer.run()

    assert await trade_ids(admin) == [1, 3]
    assert list(await rejected(admin)) == [match(2).encode()]


async def test_metrics_show_the_numbers(database: Any, unused_tcp_port: int) -> None:
    heartbeat = json.dumps({"type": "heartbeat", "last_trade_id": 9, "product_id": "BTC-USD"})
    async with (
        exchange(sends(match(1), match(5), heartbeat, "x")) as server,
        capturing(database, server.url, metrics_port=unused_tcp_port) as capture,
    ):
        await wait_for(lambda: capture.stats.rows == 2 and capture.stats.rejected == 1)
        url = f"http://127.0.0.1:{unused_tcp_port}/metrics"
        page = await asyncio.to_thread(lambda: urllib.request.urlopen(url).read().decode())

    shown = dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
    expected = {
        'ingestion_frames_total{type="match"}': 2,
        'ingestion_frames_total{type="heartbeat"}': 1,
        'ingestion_frames_total{type="unreadable"}': 1,
        "ingestion_trades_total": 2,
        "ingestion_rows_total": 2,
        "ingestion_rejected_frames_total": 1,
        "ingestion_reconnects_total": 0,
        "ingestion_buffered_frames": 0,
        "ingestion_spooled_frames": 0,
        "ingestion_spooled_bytes": 0,
        "ingestion_frames_not_kept_total": 0,
        'ingestion_missing_trades{product_id="BTC-USD"}': 7,
    }
    assert {name: float(shown[name]) for name in expected} == expected
    assert float(shown["ingestion_batch_seconds_count"]) == capture.stats.batches
    assert 0 <= float(shown["ingestion_seconds_since_last_frame"]) < 10


async def test_a_taken_metrics_port_is_told(database: Any) -> None:
    with sockets.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        capture = Capture(
            settings("ws://127.0.0.1:1", metrics_port=port),
            lambda: database.connect("medallion_ingest"),
        )
        with pytest.raises(MetricsPortError, match=f"METRICS_PORT is {port}"):
            await capture.run()


async def test_a_gap_is_recorded_once_its_grace_has_passed(
    database: Any, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingestion.capture.GAP_GRACE_SECONDS", 0.2)
    monkeypatch.setattr("ingestion.bookkeeping.CHECK_SECONDS", 0.05)
    # Two gaps that stand, and one that a late trade closes; one line in the log for all of them.
    frames = [match(trade_id) for trade_id in (1, 3, 2, 6, 8)]

    with capture_logs() as logs:
        async with exchange(sends(*frames)) as server, capturing(database, server.url):
            await wait_for(lambda: any(entry["event"] == "gap_found" for entry in logs))
            await asyncio.sleep(0.2)

    told = [entry for entry in logs if entry["event"] == "gap_found"]
    assert [(entry["first"], entry["last"], entry["trades"]) for entry in told] == [(4, 7, 3)]
    rows = await admin.fetch(
        "select product_id, first_id, last_id, found_by, status from bronze.trade_gaps order by 2"
    )
    assert [tuple(row) for row in rows] == [
        ("BTC-USD", 4, 5, "jump", "open"),
        ("BTC-USD", 7, 7, "jump", "open"),
    ]


async def test_what_is_missing_when_it_stops_is_recorded_at_once(
    database: Any, admin: Admin
) -> None:
    heartbeat = json.dumps({"type": "heartbeat", "last_trade_id": 9, "product_id": "BTC-USD"})
    async with (
        exchange(sends(match(1), match(5), heartbeat)) as server,
        capturing(database, server.url) as capture,
    ):
        await wait_for(lambda: capture.stats.rows == 2 and capture.stats.frames == 4)

    rows = await admin.fetch("select first_id, last_id, found_by from bronze.trade_gaps")
    assert [tuple(row) for row in rows] == [(2, 4, "jump"), (6, 9, "announced")]
    ids = await admin.fetchval("select ids::text from bronze.trade_coverage")
    assert ids == "{[1,10)}"


async def test_age_of_the_newest_frame_survives_a_clock_set_back(
    database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class SetBack(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) - timedelta(hours=1)

    async with (
        exchange(sends(match(1))) as server,
        capturing(database, server.url) as capture,
    ):
        await wait_for(lambda: capture.stats.rows == 1)
        monkeypatch.setattr("ingestion.sink.datetime", SetBack)
        await asyncio.sleep(0.05)
        age = capture.stats.seconds_since_last_frame

    assert age is not None
    assert 0.05 <= age < 10


async def test_stats_of_a_fresh_capture_are_zero(database: Any) -> None:
    capture = Capture(settings("ws://127.0.0.1:1"), lambda: database.connect("medallion_ingest"))

    assert capture.stats == CaptureStats(
        started_at=capture.stats.started_at,
        frames=0,
        trades=0,
        rows=0,
        batches=0,
        rejected=0,
        reconnects=0,
        buffered=0,
        repaired=0,
        spooled=0,
        spooled_bytes=0,
        not_kept=0,
        frames_by_type={"match": 0, "last_match": 0},
        seconds_since_last_frame=None,
    )
