"""Our candles held against those of the exchange: which are asked for, and what comes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from ingestion.candles import CandleRange, Fetched, fetch_candles
from ingestion.coinbase.rest import RestClient
from ingestion.errors import LedgerAwayError
from orchestration.candles import due_candles, fetch_due_candles, verdicts
from simulator.exchange import Exchange, ExchangeConfig
from simulator.faults import RestFaults
from tests.conftest import Database
from tests.dbt.conftest import match
from tests.integration.test_ingestion_rest import answer, serving
from tests.integration.test_whole_path import capture_all

if TYPE_CHECKING:
    from tests.dbt.conftest import Lakehouse

CHECK = "candles_agree_with_the_exchange"
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
NOON = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0) - timedelta(days=1)
AN_HOUR_LATER = (
    "update gold.candle_reconciliation set asked_at = asked_at - interval '61 minutes' "
    "where is_whole and verdict <> 'agrees'"
)


def counted(lakehouse: Lakehouse) -> dict[tuple[str, str], int]:
    found = asyncio.run(verdicts(lakehouse.transform))
    return {(granularity, verdict): count for granularity, verdict, count in found}


def test_wrong_candles_of_the_exchange_are_found_until_it_tells_the_right_ones(
    lakehouse: Lakehouse,
) -> None:
    start = NOON + timedelta(seconds=30)
    config = ExchangeConfig(seed=3, start=start, end=start + 8 * HOUR, speed=None)
    # Prices and sizes of these have more digits than a double.
    products = ("PEPE-USD", "BONK-USD")

    async def record_and_fetch() -> tuple[Fetched, dict[str, int]]:
        async with Exchange(config) as exchange:
            await capture_all(lakehouse, exchange, products)
            await asyncio.to_thread(lakehouse.build)
            exchange.rest_faults = RestFaults(wrong_candles=0.02, candles_left_out=0.02)
            return await fetch(exchange), dict(exchange.rest_spoilt)

    async def fetch(exchange: Exchange) -> Fetched:
        return await fetch_due_candles(lakehouse.database.settings, exchange.rest_url)

    async def fetch_again() -> Fetched:
        # The same market, at its end.
        async with Exchange(replace(config, start=config.end, end=None, speed=1)) as exchange:
            return await fetch(exchange)

    fetched, spoilt = asyncio.run(record_and_fetch())
    # Of either product at least two blocks of 300 minutes, and one of hours.
    assert fetched.answers >= 6
    assert min(spoilt["wrong"], spoilt["left_out"]) > 5
    assert lakehouse.dbt("build").failed == {CHECK}
    found = counted(lakehouse)
    assert sum(n for (_, verdict), n in found.items() if verdict == "differs") == spoilt["wrong"]
    left_out = sum(n for (_, verdict), n in found.items() if verdict == "only_ours")
    assert left_out == spoilt["left_out"]
    # The recording began in the midst of the first.
    assert found["1m", "not whole"] == found["1h", "not whole"] == len(products)
    assert found["1m", "agrees"] > 800

    # Not asked again at once, and the check does not forget.
    assert asyncio.run(due_candles(lakehouse.transform)) == []
    assert lakehouse.dbt("build").failed == {CHECK}
    lakehouse.database.execute(AN_HOUR_LATER)
    assert asyncio.run(fetch_again()).answers > 0
    lakehouse.build()
    assert {verdict for _, verdict in counted(lakehouse)} == {"agrees", "not whole"}
    step_by_step = lakehouse.fingerprints()
    lakehouse.build("--full-refresh")
    assert lakehouse.fingerprints() == step_by_step


def test_what_is_due_follows_our_candles_and_what_was_answered(lakehouse: Lakehouse) -> None:
    def due() -> list[CandleRange]:
        return asyncio.run(due_candles(lakehouse.transform))

    assert due() == []
    # Where a block of 300 begins, of minutes and of hours.
    block = 300 * HOUR
    start = NOON - (NOON - datetime(1970, 1, 1, tzinfo=UTC)) % block
    # One trade a minute, but for five hours without a recorder; then the market's clock stands.
    minutes = [*range(3, 5 * 60), *range(10 * 60, 13 * 60)]
    began = (start - NOON).total_seconds()
    lakehouse.receive(*(match(n + 1, at=began + 60 * n) for n in minutes))
    assert lakehouse.dbt("run").failed == set()
    newest = CandleRange(
        "BTC-USD", 60, start + 10 * HOUR, start + 12 * HOUR + timedelta(minutes=53)
    )
    hours = CandleRange("BTC-USD", 3600, start, start + 6 * HOUR)
    first = CandleRange("BTC-USD", 60, start + 3 * MINUTE, start + 5 * HOUR - MINUTE)
    assert due() == [newest, hours, first]

    lakehouse.answer(hours.first, hours.last, granularity=3600)
    lakehouse.answer(first.first, start + HOUR)
    left = replace(first, first=start + HOUR + MINUTE)
    assert due() == [newest, left]
    # It told of none of ours. The first is the only one not whole: ids count from 1.
    assert lakehouse.dbt("build").failed == {CHECK}
    assert due() == [newest, left]
    lakehouse.database.execute(AN_HOUR_LATER)
    assert due() == [
        newest,
        left,
        CandleRange("BTC-USD", 3600, start + HOUR, start + 3 * HOUR),
        CandleRange("BTC-USD", 60, start + 4 * MINUTE, start + HOUR),
    ]


ASKED = [CandleRange(product_id, 60, NOON, NOON + HOUR) for product_id in ("A-USD", "B-USD")]


async def fetch(database: Database, *answers: bytes) -> Fetched:
    async with (
        serving(*answers) as server,
        RestClient(server.url, requests_per_second=1000, jitter=lambda _: 0) as rest,
    ):
        fetched = await fetch_candles(database.info("medallion_ingest").open, rest, ASKED)
    at = f"start={NOON:%Y-%m-%dT%H:%M:%SZ}&end={NOON + HOUR:%Y-%m-%dT%H:%M:%SZ}".replace(":", "%3A")
    assert server.asked[-1] == f"/products/B-USD/candles?granularity=60&{at}"
    return fetched


async def test_an_answer_is_kept_as_it_came_and_one_that_is_none_is_asked_for_again(
    database: Database,
) -> None:
    odd = b'[[1772366400,1.50,"x",null],{"a":[1e3]},7]'
    told = answer("200 OK", odd)
    maintenance = answer("200 OK", b'{"message":"maintenance"}')
    assert await fetch(database, answer("500 No"), told, maintenance, told) == Fetched(answers=2)
    connection = await database.connect("admin")
    rows = await connection.fetch("select * from bronze.coinbase_candles_raw order by bronze_id")
    await connection.close()
    assert [(row["product_id"], row["granularity"]) for row in rows] == [
        ("A-USD", 60),
        ("B-USD", 60),
    ]
    assert {(row["first_bucket"], row["last_bucket"]) for row in rows} == {(NOON, NOON + HOUR)}
    assert {row["payload"] for row in rows} == {'[[1772366400, 1.50, "x", null], {"a": [1000]}, 7]'}


@pytest.mark.parametrize(
    ("bad", "set_aside"),
    [
        (answer("404 Not Found", b'{"message":"NotFound"}'), []),
        (answer("200 OK", b'["\\u0000"]'), [b'["\\u0000"]']),
    ],
    ids=["refused", "not_for_jsonb"],
)
async def test_a_bad_answer_does_not_keep_the_others(
    database: Database, bad: bytes, set_aside: list[bytes]
) -> None:
    good = answer("200 OK", b"[]")
    assert await fetch(database, bad, good) == Fetched(answers=1, refused=1)
    connection = await database.connect("admin")
    kept = await connection.fetchval(
        "select array_agg(product_id) from bronze.coinbase_candles_raw"
    )
    rejected = await connection.fetch("select frame from bronze.coinbase_frames_rejected")
    await connection.close()
    assert kept == ["B-USD"]
    assert [row["frame"] for row in rejected] == set_aside


async def test_a_product_that_is_refused_is_asked_for_once(database: Database) -> None:
    async with (
        serving(answer("404 Not Found")) as server,
        RestClient(server.url, requests_per_second=1000) as rest,
    ):
        wanted = [ASKED[0], replace(ASKED[0], granularity=3600), ASKED[1]]
        fetched = await fetch_candles(database.info("medallion_ingest").open, rest, wanted)
    assert [path.split("/")[2] for path in server.asked] == ["A-USD", "B-USD"]
    assert fetched == Fetched(refused=2)


async def test_a_database_without_the_table_is_told(database: Database) -> None:
    connection = await database.connect("admin")
    await connection.execute("drop table bronze.coinbase_candles_raw")
    await connection.close()
    with pytest.raises(LedgerAwayError, match="run `medallion migrate`"):
        await fetch(database, answer("200 OK", b"[]"))


@pytest.mark.postgres18_only
def test_reconcile_counts_candles_by_their_verdict_and_fails_where_whole_ones_differ(
    lakehouse: Lakehouse, medallion: Callable[..., Any], unused_tcp_port: int
) -> None:
    # The exchange, of which others are the trades, had one in each of these 115 minutes.
    lakehouse.receive(match(1, at=0), match(2, at=60), match(3, at=3600), match(4, at=7200))
    assert lakehouse.dbt("run").failed == set()
    here = lakehouse.database.environment()
    here["COINBASE_REST_URL"] = f"http://127.0.0.1:{unused_tcp_port}"
    with medallion("simulate", "--port", str(unused_tcp_port)) as simulator:
        simulator.wait_for(lambda: "ws://" in simulator.said)
        with medallion("reconcile", **here) as command:
            assert command.end() == 1
    assert "answers of the exchange, 0 refused." in command.said
    assert "1m differs 3 candles 1m only_theirs 112 candles" in command.said
    assert f"{CHECK}: Got 115 results" in command.said
    assert "Traceback" not in command.said


def test_the_simulator_is_told_to_serve_wrong_candles(
    medallion: Callable[..., Any], unused_tcp_port: int
) -> None:
    url = f"http://127.0.0.1:{unused_tcp_port}/products/BTC-USD/candles?granularity=3600"
    asked = f"{url}&start={int(NOON.timestamp())}&end={int(NOON.timestamp())}"
    told = []
    for share in ("0", "1"):
        arguments = ("--port", str(unused_tcp_port), "--wrong-candles", share)
        with medallion("simulate", *arguments) as simulator:
            simulator.wait_for(lambda command=simulator: "ws://" in command.said)
            told += httpx.get(asked).json()
    right, wrong = told
    assert [a == b for a, b in zip(right, wrong, strict=True)] == [True] * 4 + [False] * 2
