"""The ledger of gaps and what fills it, on a real database and a real exchange's REST."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from ingestion.backfill import Backfill, Request
from ingestion.bookkeeping import Bookkeeper
from ingestion.bronze import BronzeWriter
from ingestion.coinbase.rest import RestClient
from ingestion.continuity import GapWatch, IdRange, TradeIdTracker
from ingestion.errors import BackfillError, LedgerAwayError
from ingestion.gaps import GapLedger
from ingestion.repair import Repairer
from ingestion.spool import Spool
from simulator.exchange import Exchange, ExchangeConfig
from simulator.market import Market, micros
from tests.integration.test_ingestion_rest import answer

BTC = "BTC-USD"
END = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
HOUR = timedelta(hours=1)
SOON = timedelta(seconds=10)


@pytest.fixture
async def admin(database: Any) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    connection = await database.connect("medallion_owner")
    yield connection
    await connection.close()


@pytest.fixture
async def ledger(database: Any) -> AsyncIterator[GapLedger]:
    ledger = GapLedger(lambda: database.connect("medallion_ingest"))
    yield ledger
    ledger.close()


@asynccontextmanager
async def exchange(**changes: Any) -> AsyncIterator[Exchange]:
    """An exchange that has closed for the day: its newest trade stays the newest."""
    config = ExchangeConfig(start=END - timedelta(seconds=1), end=END, speed=1000, **changes)
    async with Exchange(config) as exchange:
        while not exchange.finished:  # noqa: ASYNC110  (a moment)
            await asyncio.sleep(0.01)
        yield exchange


async def gaps(admin: Any) -> list[tuple[Any, ...]]:
    rows = await admin.fetch(
        "select first_id, last_id, found_by, status, missing::text, absent::text, repaired, tries "
        "from bronze.trade_gaps order by gap_id"
    )
    return [tuple(row) for row in rows]


async def bronze_ids(admin: Any) -> list[int]:
    rows = await admin.fetch(
        "select (payload ->> 'trade_id')::bigint as trade_id from bronze.coinbase_trades_raw "
        "where source = 'rest' order by 1"
    )
    return [row["trade_id"] for row in rows]


async def coverage(admin: Any) -> str:
    ids: str = await admin.fetchval("select ids::text from bronze.trade_coverage")
    return ids


async def make_old(admin: Any) -> None:
    """Let an hour pass for every gap."""
    await admin.execute(
        "update bronze.trade_gaps set found_at = found_at - interval '1 hour', "
        "next_try_at = least(next_try_at, clock_timestamp())"
    )


async def test_each_range_is_a_gap_and_nobody_records_it_twice(
    ledger: GapLedger, database: Any, admin: Any
) -> None:
    another = GapLedger(lambda: database.connect("medallion_ingest"))
    missing = [IdRange(4, 5), IdRange(7, 7)]

    assert await ledger.record(BTC, missing, "jump") == missing
    assert await another.record(BTC, [IdRange(5, 8)], "announced") == [IdRange(6, 6), IdRange(8, 8)]
    assert await ledger.record(BTC, missing, "jump") == []
    another.close()

    assert [row[:4] for row in await gaps(admin)] == [
        (4, 5, "jump", "open"),
        (7, 7, "jump", "open"),
        (6, 6, "announced", "open"),
        (8, 8, "announced", "open"),
    ]
    assert await coverage(admin) == "{[4,9)}"
    assert await ledger.due() == {BTC: [IdRange(4, 8)]}
    assert await ledger.open_trades() == {BTC: 5}


async def test_two_ingesters_at_once_record_each_trade_once(
    ledger: GapLedger, database: Any, admin: Any
) -> None:
    another = GapLedger(lambda: database.connect("medallion_ingest"))
    both = [
        keeper.record(BTC, [IdRange(number, number + 2)], "jump")
        for number in range(1, 60, 2)
        for keeper in (ledger, another)
    ]
    recorded = await asyncio.gather(*both)
    another.close()

    ids = [number for parts in recorded for part in parts for number in range(part[0], part[1] + 1)]
    assert sorted(ids) == list(range(1, 62))


async def test_what_another_has_seen_is_no_gap(ledger: GapLedger, admin: Any) -> None:
    await ledger.cover({BTC: [IdRange(1, 10)]}, bronze_id=0)

    assert await ledger.record(BTC, [IdRange(8, 12)], "jump") == [IdRange(11, 12)]
    assert [row[:2] for row in await gaps(admin)] == [(11, 12)]


async def test_a_new_run_learns_where_the_last_one_left_off(ledger: GapLedger, admin: Any) -> None:
    await ledger.cover({BTC: [IdRange(1, 4), IdRange(6, 9)], "ETH-USD": [IdRange(1, 1)]}, 0)
    before = await ledger.last_bronze_id()
    frames = [
        ("exchange_ws", BTC, '{"product_id": "BTC-USD", "trade_id": 10}'),
        ("rest", BTC, '{"trade_id": 5}'),
        ("exchange_ws", "ETH-USD", '{"product_id": "ETH-USD", "trade_id": 2}'),
        ("exchange_ws", BTC, '{"product_id": "BTC-USD", "trade_id": "abc"}'),
        ("exchange_ws", None, '{"trade_id": 77}'),
        (
            "advanced_ws",
            None,
            '{"events": [{"trades": [{"product_id": "BTC-USD", "trade_id": "12"}, '
            '{"product_id": "X", "trade_id": "1"}, 7]}, {"trades": null}, 1]}',
        ),
        ("advanced_ws", None, '{"events": "none"}'),
    ]
    await admin.executemany(
        "insert into bronze.coinbase_trades_raw "
        "(received_at, source, channel, session_id, product_id, payload) "
        "values (now(), $1, 'c', gen_random_uuid(), $2, $3)",
        frames,
    )

    left_off = await ledger.left_off([BTC, "NEW-USD"])

    assert before == 0
    assert await ledger.last_bronze_id() == len(frames)
    assert list(left_off) == [BTC]
    assert left_off[BTC].covered == [IdRange(1, 4), IdRange(6, 9)]
    assert left_off[BTC].came_since == [10, 5, 12]
    await ledger.cover({BTC: [IdRange(1, 12)]}, bronze_id=len(frames))
    assert (await ledger.left_off([BTC]))[BTC].came_since == []


async def receive(admin: Any, *trade_ids: int) -> None:
    await admin.fetch(
        "insert into bronze.coinbase_trades_raw "
        "(received_at, source, channel, session_id, product_id, payload) "
        "select now(), 'exchange_ws', 'c', gen_random_uuid(), 'BTC-USD', "
        "jsonb_build_object('trade_id', trade_id) "
        "from unnest($1::int[]) as trade_id",
        trade_ids,
    )


async def test_a_run_killed_before_it_wrote_coverage_is_read_back(
    ledger: GapLedger, admin: Any
) -> None:
    await receive(admin, 21, 22, 25, 24)
    # What another product was covered up to says nothing of this one.
    await ledger.cover({"ETH-USD": [IdRange(1, 9)]}, await ledger.last_bronze_id())

    left_off = await ledger.left_off([BTC, "ETH-USD", "NEW-USD"])

    assert {product: left.covered for product, left in left_off.items()} == {
        BTC: [IdRange(21, 22), IdRange(24, 25)],
        "ETH-USD": [IdRange(1, 9)],
    }


async def test_coverage_hides_nothing_that_an_earlier_run_left_behind(
    ledger: GapLedger, database: Any, admin: Any, tmp_path: Path
) -> None:
    await receive(admin, 21, 22)
    tracker = TradeIdTracker()
    tracker.observe(BTC, 30)
    books = Bookkeeper(
        tracker,
        GapWatch(tracker, grace=5),
        BronzeWriter(
            lambda: database.connect("medallion_ingest"),
            Spool(tmp_path, 10**6),
            batch_size=10,
            flush_interval=0.1,
            max_buffered=10,
        ),
        ledger,
        RestClient("http://127.0.0.1:1"),
        lambda: None,
        all_products=False,
    )
    books.follow([BTC])

    await books._keep_coverage()
    await books.close()

    assert [row[:3] for row in await gaps(admin)] == [(23, 29, "jump")]
    assert await coverage(admin) == "{[21,31)}"


async def test_a_ledger_that_is_away_says_so_and_comes_back(database: Any) -> None:
    away = True

    async def connect() -> asyncpg.Connection[asyncpg.Record]:
        if away:
            raise ConnectionRefusedError("nobody there")
        connection: asyncpg.Connection[asyncpg.Record] = await database.connect("medallion_ingest")
        return connection

    ledger = GapLedger(connect)
    with pytest.raises(LedgerAwayError, match="nobody there"):
        await ledger.due()
    away = False
    assert await ledger.due() == {}
    await asyncio.to_thread(
        database.fetch,
        "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'medallion_ingest'",
    )
    with suppress(LedgerAwayError):  # The connection may have heard of its end already, or not.
        await ledger.due()
    assert await ledger.due() == {}
    ledger.close()


async def test_cancelling_is_not_lost_where_the_connection_breaks_meanwhile(
    database: Any, admin: Any
) -> None:
    connections: list[asyncpg.Connection[asyncpg.Record]] = []

    async def connect() -> asyncpg.Connection[asyncpg.Record]:
        connections.append(await database.connect("medallion_ingest"))
        return connections[-1]

    ledger = GapLedger(connect)
    await ledger.due()
    async with admin.transaction():
        await admin.execute("lock table bronze.trade_gaps")
        asking = asyncio.create_task(ledger.due())
        await asyncio.sleep(0.1)
        # The transaction can't be ended then, and says so in place of the cancelling: a repair
        # that took it for a database that is away would go on, and the ingester never end.
        connections[-1].terminate()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking


async def test_a_repair_that_is_cancelled_while_the_ledger_is_away_ends(ledger: GapLedger) -> None:
    began = asyncio.Event()

    class Away(Repairer):
        async def fill_what_is_due(self) -> bool:
            began.set()
            try:
                await asyncio.sleep(60)
            finally:
                raise ExceptionGroup("as a group of tasks does", [LedgerAwayError("away")])

    async with RestClient("http://127.0.0.1:1") as rest:
        repairing = asyncio.create_task(Away(ledger, rest, uuid4()).run())
        await began.wait()
        repairing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(repairing, 10)


async def test_only_one_repairs_a_product_at_a_time(ledger: GapLedger, database: Any) -> None:
    another = GapLedger(lambda: database.connect("medallion_ingest"))
    async with (
        ledger.claim(BTC) as ours,
        another.claim(BTC) as theirs,
        another.claim("ETH-USD") as other,
    ):
        assert (ours, theirs, other) == (True, False, True)
    async with another.claim(BTC) as theirs:
        assert theirs
    another.close()


async def test_many_small_gaps_are_filled_page_by_page(ledger: GapLedger, admin: Any) -> None:
    async with exchange() as server, RestClient(server.rest_url) as rest:
        newest = server.market[BTC].last_trade_id(server.market_time)
        singles = [IdRange(number, number) for number in range(newest - 2400, newest, 7)]
        await ledger.record(BTC, singles, "jump")
        repairer = Repairer(ledger, rest, uuid4())

        assert await repairer.take_turn(BTC, (await ledger.due())[BTC]) == len(singles)

        assert await bronze_ids(admin) == [part.first for part in singles]
        assert {row[3] for row in await gaps(admin)} == {"repaired"}
        assert rest.requests == 3
        # The rows are what REST told, with the product that its trades don't name.
        row = await admin.fetchrow("select * from bronze.coinbase_trades_raw where bronze_id = 1")
        assert (row["source"], row["channel"], row["product_id"]) == ("rest", "trades", BTC)
        assert set(
            await admin.fetchval(
                "select array_agg(key) from bronze.coinbase_trades_raw, "
                "jsonb_object_keys(payload) as key where bronze_id = 1"
            )
        ) == {"trade_id", "side", "size", "price", "time"}


async def test_a_repair_that_was_stopped_goes_on_where_it_was(
    ledger: GapLedger, admin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with exchange() as server, RestClient(server.rest_url) as rest:
        newest = server.market[BTC].last_trade_id(server.market_time)
        await ledger.record(BTC, [IdRange(newest - 2499, newest)], "jump")
        monkeypatch.setattr("ingestion.repair.PAGES_A_TURN", 1)
        repairer = Repairer(ledger, rest, uuid4())

        assert await repairer.take_turn(BTC, (await ledger.due())[BTC]) == 1000
        assert await ledger.due() == {BTC: [IdRange(newest - 2499, newest - 1000)]}
        assert await repairer.take_turn(BTC, (await ledger.due())[BTC]) == 1000
        assert await repairer.take_turn(BTC, (await ledger.due())[BTC]) == 500

        assert rest.requests == 3
        assert await bronze_ids(admin) == list(range(newest - 2499, newest + 1))
        ((_, _, _, status, missing, _, repaired, _),) = await gaps(admin)
        assert (status, missing, repaired) == ("repaired", "{}", 2500)


async def test_an_id_that_does_not_exist_is_absent_after_three_tries(
    ledger: GapLedger, admin: Any
) -> None:
    async with exchange() as server, RestClient(server.rest_url) as rest:
        newest = server.market[BTC].last_trade_id(server.market_time)
        await ledger.record(BTC, [IdRange(newest - 1, newest + 3)], "jump")
        await make_old(admin)
        repairer = Repairer(ledger, rest, uuid4())
        states = []
        for _ in range(3):
            await repairer.take_turn(BTC, (await ledger.due())[BTC])
            states += [row[3:] for row in await gaps(admin)]
            # Not asked for again at once.
            assert await ledger.due() == {}
            await make_old(admin)

    left = f"{{[{newest + 1},{newest + 4})}}"
    assert states == [
        ("open", left, "{}", 2, 1),
        ("open", left, "{}", 2, 2),
        ("absent", "{}", left, 2, 3),
    ]
    assert await ledger.due() == {}


async def test_a_trade_just_found_missing_may_not_be_in_rest_yet(
    ledger: GapLedger, admin: Any
) -> None:
    async with exchange() as server, RestClient(server.rest_url) as rest:
        newest = server.market[BTC].last_trade_id(server.market_time)
        await ledger.record(BTC, [IdRange(newest + 1, newest + 1)], "announced")
        await Repairer(ledger, rest, uuid4()).take_turn(BTC, (await ledger.due())[BTC])

    row = await admin.fetchrow(
        "select tries, next_try_at - clock_timestamp() as wait from bronze.trade_gaps"
    )
    assert row["tries"] == 0
    assert timedelta(0) < row["wait"] <= SOON


async def test_a_product_that_the_exchange_does_not_know_waits_and_holds_up_nobody(
    ledger: GapLedger, admin: Any
) -> None:
    async with exchange() as server, RestClient(server.rest_url) as rest:
        newest = server.market[BTC].last_trade_id(server.market_time)
        await ledger.record("NO-USD", [IdRange(1, 5)], "jump")
        await ledger.record(BTC, [IdRange(newest, newest)], "jump")
        running = asyncio.create_task(Repairer(ledger, rest, uuid4()).run())
        try:
            async with asyncio.timeout(10):
                while await ledger.due():  # noqa: ASYNC110  (asks the database)
                    await asyncio.sleep(0.05)
        finally:
            running.cancel()
            await asyncio.wait({running})

    assert [(row[3], row[6], row[7]) for row in await gaps(admin)] == [
        ("open", 0, 0),
        ("repaired", 1, 0),
    ]


@pytest.mark.postgres18_only
async def test_scattered_ids_that_do_not_exist_do_not_keep_a_repair_from_the_rest(
    ledger: GapLedger, admin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingestion.repair.PAGES_A_TURN", 3)
    market = Market(0)
    newest = market[BTC].last_trade_id(micros(END))
    absent = set(range(newest - 7000, newest, 1000))
    async with exchange(absent={BTC: absent}) as server, RestClient(server.rest_url) as rest:
        await ledger.record(BTC, [IdRange(newest - 7999, newest)], "jump")
        await make_old(admin)
        repairer = Repairer(ledger, rest, uuid4())
        for _ in range(3):
            await repairer.take_turn(BTC, (await ledger.due())[BTC])

        assert await bronze_ids(admin) == sorted(set(range(newest - 7999, newest + 1)) - absent)
        assert await ledger.due() == {}
        assert [row[7] for row in await gaps(admin)] == [1]


@pytest.mark.postgres18_only
async def test_a_product_that_rest_does_not_answer_for_holds_up_nobody(
    ledger: GapLedger, admin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingestion.repair.TURN_SECONDS", 2)
    asked: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        asked.append(head.split(b" ")[1].decode())
        body = b'[{"trade_id":5,"time":"2026-09-30T02:03:12Z"}]'
        if "AAA-USD" in asked[-1]:
            told = answer("500 Internal Server Error")
        elif "NUL-USD" in asked[-1]:
            told = answer("200 OK", body.replace(b"}", b',"side":"\\u0000"}'))
        else:
            told = answer("200 OK", body)
        writer.write(told)
        writer.close()

    products = ("AAA-USD", "BBB-USD", "NUL-USD")
    for product_id in products:
        await ledger.record(product_id, [IdRange(5, 5)], "jump")
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        async with RestClient(f"http://127.0.0.1:{port}") as rest:
            running = asyncio.create_task(Repairer(ledger, rest, uuid4()).run())
            try:
                async with asyncio.timeout(10):
                    while await ledger.due():  # noqa: ASYNC110  (asks the database)
                        await asyncio.sleep(0.05)
            finally:
                running.cancel()
                await asyncio.wait({running})

    rows = await admin.fetch("select product_id, status from bronze.trade_gaps order by 1")
    assert [tuple(row) for row in rows] == [
        ("AAA-USD", "open"),
        ("BBB-USD", "repaired"),
        ("NUL-USD", "open"),
    ]
    # What jsonb can't hold is kept as it came.
    (refused,) = await admin.fetch("select * from bronze.coinbase_frames_rejected")
    assert b"\\u0000" in refused["frame"]


async def backfill(ledger: GapLedger, rest: RestClient, *request: Any, **by: Any) -> Any:
    progress: list[tuple[int, int]] = []
    done = await Backfill(ledger, rest, lambda *told: progress.append(told)).run(
        Request(*request, **by)
    )
    return done, progress


async def test_history_is_fetched_up_to_what_is_kept(ledger: GapLedger, admin: Any) -> None:
    async with exchange() as server, RestClient(server.rest_url) as rest:
        newest = server.market[BTC].last_trade_id(server.market_time)
        await ledger.cover({BTC: [IdRange(newest - 100, newest)]}, bronze_id=0)

        done, progress = await backfill(ledger, rest, BTC, newest - 1600)

        assert done.trades == 1500
        assert (done.missing, done.waiting) == ([], [])
        assert progress[0] == (0, 1500)
        assert progress[-1] == (1500, 1500)
        assert await bronze_ids(admin) == list(range(newest - 1600, newest - 100))
        again, _ = await backfill(ledger, rest, BTC, newest - 1600)
        assert again.trades == 0
        assert await coverage(admin) == f"{{[{newest - 1600},{newest + 1})}}"


async def test_a_time_is_found_among_the_ids(ledger: GapLedger, admin: Any) -> None:
    since = END - timedelta(minutes=5)
    async with exchange() as server, RestClient(server.rest_url, requests_per_second=1000) as rest:
        server.limits = type(server.limits)(requests_per_second=10_000, requests_burst=10_000)
        tape = server.market[BTC]
        first = tape.last_trade_id(micros(since) - 1) + 1
        newest = tape.last_trade_id(server.market_time)

        done, _ = await backfill(ledger, rest, BTC, since=since)

    assert done.asked == IdRange(first, newest)
    assert await bronze_ids(admin) == list(range(first, newest + 1))


async def test_ids_that_nobody_asked_for_stay_open_until_somebody_does(
    ledger: GapLedger, admin: Any
) -> None:
    async with exchange() as server, RestClient(server.rest_url) as rest:
        newest = server.market[BTC].last_trade_id(server.market_time)
        await ledger.cover({BTC: [IdRange(newest - 100, newest)]}, bronze_id=0)

        done, _ = await backfill(ledger, rest, BTC, newest - 999, newest - 500)
        between = IdRange(newest - 499, newest - 101)
        assert done.waiting == [between]
        assert await ledger.due() == {}
        assert await ledger.open_trades() == {}
        assert await ledger.missing(BTC, between) == [between]

        done, _ = await backfill(ledger, rest, BTC, newest - 300, newest - 200)
        assert done.trades == 101
        done, _ = await backfill(ledger, rest, BTC, newest - 999)
        assert done.trades == 399 - 101

    assert await bronze_ids(admin) == list(range(newest - 999, newest - 100))
    assert {row[3] for row in await gaps(admin)} == {"repaired"}


async def test_what_is_asked_for_by_its_ids_is_fetched_again(ledger: GapLedger, admin: Any) -> None:
    async with exchange() as server, RestClient(server.rest_url) as rest:
        newest = server.market[BTC].last_trade_id(server.market_time)
        await ledger.cover({BTC: [IdRange(newest - 100, newest)]}, bronze_id=0)
        done, _ = await backfill(ledger, rest, BTC, newest - 5, newest - 3)

    assert done.trades == 3
    assert await bronze_ids(admin) == [newest - 5, newest - 4, newest - 3]


async def test_ids_missed_while_nobody_listened_are_due(ledger: GapLedger) -> None:
    async with exchange() as server, RestClient(server.rest_url) as rest:
        newest = server.market[BTC].last_trade_id(server.market_time)
        await ledger.cover({BTC: [IdRange(newest - 900, newest - 800)]}, bronze_id=0)
        done, _ = await backfill(ledger, rest, BTC, newest - 10, newest)

    assert done.waiting == []
    assert await ledger.due() == {BTC: [IdRange(newest - 799, newest - 11)]}


@pytest.mark.postgres18_only
async def test_a_request_that_makes_no_sense_changes_nothing(ledger: GapLedger, admin: Any) -> None:
    refused: list[tuple[dict[str, Any], str]] = [
        ({"from_id": 9, "to_id": 8}, "--from-id 9 is above --to-id 8"),
        ({}, "give either --from-id or --since"),
        ({"from_id": 1, "since": END}, "give either --from-id or --since"),
        ({"since": datetime.now(UTC) + timedelta(days=1)}, "is in the future"),
        ({"from_id": 10**15}, r"The newest trade of BTC-USD is \d+: there is no 10{15} yet"),
        ({"from_id": 1, "to_id": 10**15}, "there is no 10{15} yet"),
        ({"since": END + timedelta(minutes=1)}, "has no trade from"),
        ({"since": END - timedelta(minutes=1), "to_id": 9}, "has no trade from .* up to 9"),
        ({"product_id": "NO-USD", "from_id": 1}, "no trades of 'NO-USD'.*NotFound"),
    ]
    async with exchange() as server, RestClient(server.rest_url) as rest:
        for request, told in refused:
            with pytest.raises(BackfillError, match=told):
                await backfill(ledger, rest, **{"product_id": BTC, **request})

    assert await gaps(admin) == []
    assert await admin.fetchval("select count(*) from bronze.trade_coverage") == 0
