import asyncio
import json
import sys
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, InvalidStatus

from simulator.exchange import Exchange, ExchangeConfig
from simulator.faults import Faults, RestFaults
from simulator.frames import iso, match_frame, rest_trade
from simulator.market import PRODUCTS, SECOND
from simulator.server import Limits

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
QUICK = Limits(heartbeat_interval=0.05, requests_per_second=1e6, requests_burst=10**6)
REPLAY = ExchangeConfig(
    start=NOON, end=NOON + timedelta(minutes=10), speed=None, limits=QUICK, seed=5
)
LIVE = ExchangeConfig(start=NOON, speed=600, limits=QUICK, seed=5)


def request(type_: str, product_ids, channels=("matches", "heartbeat")) -> str:
    ids = list(product_ids)
    listed = [{"name": name, "product_ids": ids} for name in channels]
    return json.dumps({"type": type_, "channels": listed})


@asynccontextmanager
async def reader(exchange: Exchange, *product_ids: str, channels=("matches", "heartbeat")):
    # A client that has stopped reading does not see the answer to its close frame.
    async with connect(exchange.ws_url, compression=None, close_timeout=0.1) as socket:
        await socket.send(request("subscribe", product_ids, channels))
        yield socket


@asynccontextmanager
async def rest(exchange: Exchange):
    async with httpx.AsyncClient(base_url=exchange.rest_url, trust_env=False) as client:
        yield client


async def receive(socket, type_: str) -> dict:
    """Return the next frame of a type, passing over others."""
    async with asyncio.timeout(5):
        while (frame := json.loads(await socket.recv()))["type"] != type_:
            pass
    return frame


async def read_all(exchange: Exchange, socket) -> list[str | bytes]:
    """Return all trade-carrying frames of a replay, malformed ones included."""
    frames: list[str | bytes] = []
    async with asyncio.timeout(10):
        while not exchange.finished or len(frames) < expected_frames(exchange):
            frame = await socket.recv()
            if isinstance(frame, bytes) or not frame.startswith(
                ('{"type":"subscriptions"', '{"type":"heartbeat"')
            ):
                frames.append(frame)
    return frames


def expected_frames(exchange: Exchange) -> int:
    return exchange.status().frames_sent + exchange.status().last_matches


async def read_until_closed(socket) -> None:
    while True:
        await socket.recv()


# Subscribing


async def test_subscriptions_then_last_match_then_matches():
    async with Exchange(REPLAY) as exchange, reader(exchange, "BTC-USD") as socket:
        frames = [json.loads(await socket.recv()) for _ in range(4)]
        assert [f["type"] for f in frames] == ["subscriptions", "last_match", "match", "match"]


async def test_the_last_match_is_the_newest_trade_before_the_subscription():
    async with Exchange(REPLAY) as exchange:
        begin = exchange.market_time
        async with reader(exchange, "BTC-USD") as socket:
            frame = await receive(socket, "last_match")
        assert frame["trade_id"] == exchange.market["BTC-USD"].last_trade_id(begin)


async def test_the_root_form_of_product_ids_is_understood():
    message = {"type": "subscribe", "product_ids": ["BTC-USD"], "channels": ["heartbeat"]}
    async with Exchange(REPLAY) as exchange, connect(exchange.ws_url) as socket:
        await socket.send(json.dumps(message))
        frame = await receive(socket, "subscriptions")
        listed = {"name": "heartbeat", "product_ids": ["BTC-USD"], "account_ids": None}
        assert frame["channels"] == [listed]


async def test_a_client_that_does_not_subscribe_in_time_is_disconnected():
    hasty = replace(REPLAY, limits=replace(QUICK, subscribe_timeout=0.1))
    async with Exchange(hasty) as exchange, connect(exchange.ws_url) as socket:
        await receive(socket, "error")
        with pytest.raises(ConnectionClosedError):
            await socket.recv()


@pytest.mark.parametrize(
    ("product_id", "reason"),
    [
        ("XXX-USD", "XXX-USD is not a valid product"),
        ("YFI-USD", "YFI-USD is delisted"),
    ],
)
async def test_one_bad_product_gives_one_error_and_the_others_stay(product_id, reason):
    async with Exchange(REPLAY) as exchange, reader(exchange, product_id, "BTC-USD") as socket:
        assert json.loads(await socket.recv()) == {
            "type": "error",
            "message": "Failed to subscribe",
            "reason": reason,
        }
        assert (await receive(socket, "match"))["product_id"] == "BTC-USD"


@pytest.mark.parametrize(
    "message", ["{", "[]", '{"type":"hello"}', '{"type":"subscribe"}', request("subscribe", [])]
)
async def test_a_message_that_makes_no_sense_is_answered_with_an_error(message):
    async with Exchange(REPLAY) as exchange, connect(exchange.ws_url) as socket:
        await socket.send(message)
        assert (await receive(socket, "error"))["message"]


async def test_only_the_channels_asked_for_are_sent():
    async with Exchange(LIVE) as exchange:
        async with reader(exchange, "BTC-USD", channels=["heartbeat"]) as socket:
            types = {json.loads(await socket.recv())["type"] for _ in range(6)}
        assert types == {"subscriptions", "heartbeat"}


async def test_unsubscribing_ends_the_matches_of_a_product():
    async with Exchange(LIVE) as exchange, reader(exchange, "BTC-USD", "ETH-USD") as socket:
        await receive(socket, "match")
        await socket.send(request("unsubscribe", ["BTC-USD"], ["matches"]))
        await receive(socket, "subscriptions")
        products = {(await receive(socket, "match"))["product_id"] for _ in range(100)}
        assert products == {"ETH-USD"}


async def test_a_subscribe_message_too_big_is_disconnected():
    async with Exchange(REPLAY) as exchange, connect(exchange.ws_url) as socket:
        await socket.send(request("subscribe", ["BTC-USD"] * 1_000))
        with pytest.raises(ConnectionClosedError) as closed:
            await socket.recv()
        assert closed.value.rcvd.code == 1009


async def flood(socket) -> None:
    for _ in range(150):
        await socket.send("{}")
    await read_until_closed(socket)


async def test_too_many_client_messages_are_disconnected():
    async with Exchange(REPLAY) as exchange, reader(exchange, "YFI-USD") as socket:
        with pytest.raises(ConnectionClosed) as closed:
            await flood(socket)
        assert closed.value.rcvd.reason == "ErrSlowRead"


async def test_too_many_connections_at_once_are_refused():
    strict = replace(REPLAY, limits=replace(QUICK, connections_burst=1))
    async with Exchange(strict) as exchange, connect(exchange.ws_url):
        with pytest.raises(InvalidStatus) as refused:
            await connect(exchange.ws_url)
        assert refused.value.response.status_code == 429


# The tape


async def test_a_replay_delivers_every_trade_once_in_order_and_finishes():
    async with Exchange(REPLAY) as exchange, reader(exchange, "BTC-USD", "ETH-USD") as socket:
        frames = [json.loads(frame) for frame in await read_all(exchange, socket)]
        offered = exchange.status().trades
        for product_id in ("BTC-USD", "ETH-USD"):
            ids = [f["trade_id"] for f in frames if f["product_id"] == product_id]
            span = offered[product_id]
            assert ids == list(range(span.first_id, span.last_id + 1))
            assert len(ids) == span.count > 300


async def test_the_socket_sends_the_markets_own_bytes():
    async with Exchange(REPLAY) as exchange, reader(exchange, "PEPE-USD") as socket:
        last, *matches = await read_all(exchange, socket)
        tape = exchange.market["PEPE-USD"]
        ids = range(json.loads(last)["trade_id"] + 1, exchange.status().trades["PEPE-USD"].last_id)
        assert matches[: len(ids)] == [match_frame(tape.trade(i)).decode() for i in ids]


async def test_a_replay_waits_for_a_subscriber():
    async with Exchange(REPLAY) as exchange:
        begin = exchange.market_time
        async with connect(exchange.ws_url):
            await asyncio.sleep(0.1)
        assert exchange.market_time == begin


async def test_a_replay_loses_nothing_to_a_reader_that_pauses():
    longer = replace(REPLAY, end=NOON + timedelta(hours=3))
    async with Exchange(longer) as exchange, reader(exchange, "BTC-USD") as socket:
        await asyncio.sleep(0.5)
        assert not exchange.finished
        frames = await read_all(exchange, socket)
        assert len(frames) == exchange.status().trades["BTC-USD"].count


async def test_after_the_end_heartbeats_go_on():
    async with Exchange(REPLAY) as exchange, reader(exchange, "BTC-USD") as socket:
        await read_all(exchange, socket)
        beats = [json.loads(await socket.recv()) for _ in range(3)]
        last_id = exchange.status().trades["BTC-USD"].last_id
        assert {(b["type"], b["last_trade_id"]) for b in beats} == {("heartbeat", last_id)}


async def test_a_later_run_continues_the_same_market():
    half = replace(REPLAY, end=NOON + timedelta(minutes=5))
    rest_of_it = replace(REPLAY, start=half.end)
    ids = []
    for config in (half, rest_of_it):
        async with Exchange(config) as exchange, reader(exchange, "BTC-USD") as socket:
            frames = [json.loads(frame) for frame in await read_all(exchange, socket)]
            ids.append([frame["trade_id"] for frame in frames])
    assert ids[1][0] == ids[0][-1]


async def test_a_live_market_keeps_its_speed():
    async with Exchange(LIVE) as exchange:
        begin, loop = exchange.market_time, asyncio.get_running_loop()
        before = loop.time()
        await asyncio.sleep(0.5)
        expected = (loop.time() - before) * 600 * SECOND
        assert exchange.market_time - begin == pytest.approx(expected, rel=0.3)


async def test_a_heartbeat_names_the_newest_trade():
    async with Exchange(LIVE) as exchange, reader(exchange, "BTC-USD") as socket:
        newest = 0
        for _ in range(200):
            frame = json.loads(await socket.recv())
            if frame["type"] == "heartbeat":
                assert frame["last_trade_id"] == newest
            newest = frame.get("trade_id", newest)


async def test_a_slow_reader_of_a_live_market_is_disconnected():
    impatient = replace(LIVE, speed=50_000, limits=replace(QUICK, unread_bytes=100_000))
    async with Exchange(impatient) as exchange, reader(exchange, "BTC-USD") as socket:
        await asyncio.sleep(1)
        with pytest.raises(ConnectionClosed):
            await asyncio.wait_for(read_until_closed(socket), 10)
        assert not exchange.status().finished


# Faults

FAULTY = Faults(duplicates=0.04, late=0.04, malformed=0.04, delay=30, seed=2)


async def test_faults_are_accounted_for_exactly():
    config = replace(REPLAY, faults=replace(FAULTY, dropped=0.04))
    async with Exchange(config) as exchange, reader(exchange, "BTC-USD", "SOL-USD") as socket:
        frames = await read_all(exchange, socket)
        status = exchange.status()
        genuine = Counter(f for f in frames if is_genuine(exchange, f))
        trades = sum(span.count for span in status.trades.values())
        assert len(genuine) == trades - status.dropped
        assert genuine.total() - len(genuine) == status.duplicates > 0
        assert len(frames) - genuine.total() == status.malformed > 0
        assert len(frames) == status.frames_sent + status.last_matches
        assert status.late > 0
        assert status.dropped > 0


def is_genuine(exchange: Exchange, frame: str | bytes) -> bool:
    try:
        fields = json.loads(frame)
        trade = exchange.market[fields["product_id"]].trade(fields["trade_id"])
        return match_frame(trade, fields["type"]) == frame.encode()
    except (ValueError, KeyError, TypeError, AttributeError):
        return False


async def test_without_drops_every_trade_arrives_despite_the_other_faults():
    config = replace(REPLAY, faults=FAULTY)
    async with Exchange(config) as exchange, reader(exchange, "BTC-USD") as socket:
        frames = await read_all(exchange, socket)
        genuine = {f for f in frames if is_genuine(exchange, f)}
        assert len(genuine) == exchange.status().trades["BTC-USD"].count


async def test_what_is_held_back_comes_when_the_tape_ends():
    config = replace(REPLAY, faults=Faults(late=1, delay=10_000))
    async with Exchange(config) as exchange, reader(exchange, "BTC-USD") as socket:
        frames = await read_all(exchange, socket)
        assert len(frames) == exchange.status().trades["BTC-USD"].count > 300


async def test_a_dropped_connection_ends_without_a_closing_handshake():
    async with Exchange(LIVE) as exchange, reader(exchange, "BTC-USD") as socket:
        await receive(socket, "match")
        await exchange.drop_connections()
        with pytest.raises(ConnectionClosedError) as closed:
            await read_until_closed(socket)
        assert closed.value.rcvd is None


async def test_a_closed_connection_tells_code_and_reason():
    async with Exchange(LIVE) as exchange, reader(exchange, "BTC-USD") as socket:
        await receive(socket, "match")
        closing = asyncio.create_task(exchange.close_connections(1012, "restart"))
        with pytest.raises(ConnectionClosed) as closed:
            await read_until_closed(socket)
        await closing
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1012, "restart")


async def test_a_silent_exchange_sends_nothing_while_its_market_goes_on():
    async with Exchange(LIVE) as exchange, reader(exchange, "BTC-USD") as socket:
        await receive(socket, "match")
        exchange.silent = True
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(read_until_closed(socket), 0.3)
        begin = exchange.market_time
        await asyncio.sleep(0.1)
        assert exchange.market_time > begin


# REST


async def test_a_cursor_walk_equals_the_markets_trades():
    async with Exchange(replace(LIVE, speed=0.001)) as exchange, rest(exchange) as client:
        newest = exchange.market["ETH-USD"].last_trade_id(exchange.market_time)
        walked, after = [], newest + 1
        while len(walked) < 2_500:
            page = await client.get(f"/products/ETH-USD/trades?limit=1000&after={after}")
            walked += page.json()
            after = int(page.headers["CB-AFTER"])
        tape = exchange.market["ETH-USD"]
        expected = [json.loads(rest_trade(t)) for t in tape.trades(newest - 2_999, newest)]
        assert walked == expected[::-1]


async def test_no_trade_of_the_future_is_shown():
    async with Exchange(replace(LIVE, speed=0.001)) as exchange, rest(exchange) as client:
        page = (await client.get("/products/BTC-USD/trades?after=99999999999999")).json()
        assert page[0]["time"] <= iso(exchange.market_time)


async def test_before_leaves_out_older_trades():
    async with Exchange(replace(LIVE, speed=0.001)) as exchange, rest(exchange) as client:
        newest = (await client.get("/products/BTC-USD/trades?limit=1")).json()[0]["trade_id"]
        page = (await client.get(f"/products/BTC-USD/trades?before={newest - 3}")).json()
        assert [row["trade_id"] for row in page] == [newest, newest - 1, newest - 2]


async def test_candles_equal_those_computed_from_the_trades_rest_shows():
    async with Exchange(replace(LIVE, speed=0.001)) as exchange, rest(exchange) as client:
        trades = (await client.get("/products/SOL-USD/trades")).json()
        buckets: dict[int, list[dict]] = {}
        for trade in reversed(trades):
            at = datetime.fromisoformat(trade["time"]).timestamp()
            buckets.setdefault(int(at) // 60 * 60, []).append(trade)
        complete = sorted(buckets)[1:]
        expected = []
        for time in reversed(complete):
            prices = [float(trade["price"]) for trade in buckets[time]]
            volume = float(sum(Decimal(trade["size"]) for trade in buckets[time]))
            row = [time, min(prices), max(prices), prices[0], prices[-1], volume]
            expected.append(row)
        query = {"granularity": 60, "start": complete[0], "end": complete[-1]}
        rows = (await client.get("/products/SOL-USD/candles", params=query)).json()
        assert rows == expected


async def test_a_bucket_without_trades_is_left_out():
    async with Exchange(replace(LIVE, speed=0.001)) as exchange, rest(exchange) as client:
        start, end = NOON - timedelta(minutes=299), NOON
        query = {"granularity": 60, "start": start.isoformat(), "end": end.isoformat()}
        rows = (await client.get("/products/YFI-USD/candles", params=query)).json()
        quiet = (await client.get("/products/AVAX-USD/candles", params=query)).json()
        assert rows == []
        assert 0 < len(quiet) < 300


@pytest.mark.parametrize(
    "path",
    [
        "/products/BTC-USD/candles?granularity=60&start=2026-11-23T00:00:00Z&end=2026-11-23T05:00:00Z",
        "/products/BTC-USD/candles?granularity=61",
        "/products/BTC-USD/candles?granularity=60&start=yesterday&end=today",
        "/products/BTC-USD/trades?after=abc",
        "/products/BTC-USD/trades?limit=0",
    ],
)
async def test_a_bad_request_is_answered_with_400_and_a_message(path):
    async with Exchange(LIVE) as exchange, rest(exchange) as client:
        answer = await client.get(path)
        assert (answer.status_code, list(answer.json())) == (400, ["message"])


@pytest.mark.parametrize("path", ["/", "/products/XXX-USD", "/products/XXX-USD/trades", "/orders"])
async def test_an_unknown_path_is_not_found(path):
    async with Exchange(LIVE) as exchange, rest(exchange) as client:
        answer = await client.get(path)
        assert (answer.status_code, answer.json()) == (404, {"message": "NotFound"})


async def test_products_are_listed_with_the_delisted_ones():
    async with Exchange(LIVE) as exchange, rest(exchange) as client:
        rows = {row["id"]: row for row in (await client.get("/products")).json()}
        assert rows["BTC-USD"]["quote_increment"] == "0.01"
        assert (rows["BTC-USD"]["status"], rows["YFI-USD"]["status"]) == ("online", "delisted")
        assert (await client.get("/products/PEPE-USD")).json() == rows["PEPE-USD"]


async def test_absent_ids_are_neither_on_the_socket_nor_in_rest():
    async with Exchange(REPLAY) as probe:
        newest = probe.market["BTC-USD"].last_trade_id(probe.market_time)
    absent = {newest, newest - 1, newest + 5, newest + 6, newest + 300}
    config = replace(REPLAY, absent={"BTC-USD": absent})
    async with Exchange(config) as exchange, reader(exchange, "BTC-USD") as socket:
        frames = [json.loads(frame) for frame in await read_all(exchange, socket)]
        span = exchange.status().trades["BTC-USD"]
        ids = [i for i in range(newest - 2, span.last_id + 1) if i not in absent]
        assert [frame["trade_id"] for frame in frames] == ids
        assert (span.first_id, span.count) == (newest - 2, len(ids))
        async with rest(exchange) as client:
            page = await client.get(f"/products/BTC-USD/trades?limit=3&after={newest + 8}")
        assert [row["trade_id"] for row in page.json()] == [newest + i for i in (7, 4, 3)]
        assert page.headers["CB-AFTER"] == str(newest + 3)


async def test_the_exchanges_own_list_holds_what_rest_shows():
    async with Exchange(replace(LIVE, speed=0.001)) as exchange, rest(exchange) as client:
        newest = exchange.market["ETH-USD"].last_trade_id(exchange.market_time)
        rows = (await client.get(f"/products/ETH-USD/trades?after={newest + 1}")).json()
        own = list(exchange.trades("ETH-USD", newest - 999, newest + 10))
        assert own[: len(rows)] == [row | {"product_id": "ETH-USD"} for row in reversed(rows)]
        assert len(own) < 1_010  # none of the future


async def test_a_product_can_be_listed_while_the_market_runs():
    product = replace(PRODUCTS["BTC-USD"], id="NEW-USD")
    async with Exchange(LIVE) as exchange, rest(exchange) as client:
        assert (await client.get("/products/NEW-USD")).status_code == 404
        exchange.list_product(product)
        assert (await client.get("/products/NEW-USD")).json()["status"] == "online"
        async with reader(exchange, "NEW-USD", channels=["matches"]) as socket:
            first = json.loads(await socket.recv())
            while first["type"] == "subscriptions":
                first = json.loads(await socket.recv())
        assert (first["product_id"], first["trade_id"]) == ("NEW-USD", 1)
        span = exchange.status().trades["NEW-USD"]
        assert (span.first_id, span.count) == (1, span.last_id)


async def test_a_delisted_product_is_refused_and_gets_no_more_trades():
    async with Exchange(LIVE) as exchange, reader(exchange, "BTC-USD", "ETH-USD") as socket:
        await receive(socket, "match")
        exchange.delist("BTC-USD")
        last_id = exchange.status().trades["BTC-USD"].last_id
        frames = [json.loads(await socket.recv()) for _ in range(300)]
        ids = [f["trade_id"] for f in frames if f["product_id"] == "BTC-USD" and "trade_id" in f]
        assert max(ids, default=last_id) <= last_id
        assert exchange.status().trades["BTC-USD"].last_id == last_id
        async with rest(exchange) as client:
            assert (await client.get("/products/BTC-USD")).json()["status"] == "delisted"
            newest = (await client.get("/products/BTC-USD/trades?limit=1")).json()
        assert newest[0]["trade_id"] == last_id
        async with reader(exchange, "BTC-USD") as other:
            assert (await receive(other, "error"))["reason"] == "BTC-USD is delisted"


# REST faults


async def test_answers_with_429_say_when_to_come_back():
    async with Exchange(LIVE) as exchange, rest(exchange) as client:
        assert (await client.get("/time")).status_code == 200
        exchange.rest_faults = RestFaults(too_many=1, retry_after=7)
        answer = await client.get("/time")
        assert (answer.status_code, answer.headers["Retry-After"]) == (429, "7")
        assert answer.json() == {"message": "Public rate limit exceeded"}
        assert exchange.rest_spoilt == {"too_many": 1}
        exchange.rest_faults = RestFaults()
        assert (await client.get("/time")).status_code == 200


async def test_a_failing_answer_is_500():
    async with Exchange(LIVE) as exchange, rest(exchange) as client:
        exchange.rest_faults = RestFaults(failing=1)
        assert (await client.get("/products")).status_code == 500


async def test_truncated_json_comes_as_if_it_were_whole():
    async with Exchange(LIVE) as exchange, rest(exchange) as client:
        whole = (await client.get("/products/BTC-USD")).text
        exchange.rest_faults = RestFaults(truncated=1)
        answer = await client.get("/products/BTC-USD")
        assert answer.status_code == 200
        assert answer.text == whole[: len(whole) // 2]
        with pytest.raises(json.JSONDecodeError):
            answer.json()


async def test_a_hanging_answer_comes_late():
    async with Exchange(LIVE) as exchange, rest(exchange) as client:
        exchange.rest_faults = RestFaults(hanging=1, hang_seconds=0.3)
        with pytest.raises(httpx.ReadTimeout):
            await client.get("/time", timeout=0.1)
        assert (await client.get("/time")).status_code == 200


async def test_a_hanging_answer_never_comes_and_ends_with_the_server():
    async with asyncio.timeout(5), httpx.AsyncClient(trust_env=False) as client:
        async with Exchange(LIVE) as exchange:
            exchange.rest_faults = RestFaults(hanging=1)
            waiting = asyncio.create_task(client.get(f"{exchange.rest_url}/time", timeout=60))
            await asyncio.sleep(0.3)
            assert exchange.rest_spoilt == {"hanging": 1}
            assert not waiting.done()
        with pytest.raises(httpx.TransportError):
            await waiting


async def test_the_status_page_suffers_no_fault_and_the_rate_limit_stays_on():
    async with Exchange(replace(LIVE, limits=Limits())) as exchange, rest(exchange) as client:
        exchange.rest_faults = RestFaults(failing=1)
        assert (await client.get("/simulator/status")).status_code == 200
        codes = Counter([(await client.get("/time")).status_code for _ in range(30)])
        assert codes[500] >= 15
        assert codes[429] > 0


async def test_time_is_market_time():
    async with Exchange(replace(LIVE, speed=0.001)) as exchange, rest(exchange) as client:
        answer = (await client.get("/time")).json()
        assert answer["epoch"] == pytest.approx(NOON.timestamp(), abs=1)
        assert answer["iso"].startswith("2026-11-23T12:00:00")


async def test_too_many_requests_are_refused_with_429():
    async with Exchange(replace(LIVE, limits=Limits())) as exchange, rest(exchange) as client:
        answers = [await client.get("/time") for _ in range(30)]
        refused = [a for a in answers if a.status_code == 429]
        assert len(answers) - len(refused) >= 15
        assert refused[0].json() == {"message": "Public rate limit exceeded"}


async def test_the_status_page_is_never_refused():
    async with Exchange(replace(LIVE, limits=Limits())) as exchange, rest(exchange) as client:
        answers = [await client.get("/simulator/status") for _ in range(30)]
        assert {answer.status_code for answer in answers} == {200}
        assert answers[-1].json()["finished"] is False


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"speed": 0}, "above 0"),
        ({"start": NOON, "end": NOON}, "not after"),
        ({"start": NOON.replace(tzinfo=None)}, "no time zone"),
    ],
)
def test_a_wrong_setting_is_refused(wrong, match):
    with pytest.raises(ValueError, match=match):
        ExchangeConfig(**wrong)


# As a process

PROCESS = """
import asyncio
from simulator.exchange import Exchange
from simulator.server import run
asyncio.run(run(Exchange(), lambda exchange: print(exchange.ws_url, flush=True)))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows can't send SIGTERM to a process")
async def test_a_process_runs_until_sigterm():
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROCESS, stdout=asyncio.subprocess.PIPE
    )
    url = (await process.stdout.readline()).decode().strip()
    async with connect(url, close_timeout=0.1) as socket:
        await socket.send(request("subscribe", ["BTC-USD"]))
        await receive(socket, "last_match")
        process.terminate()
        with pytest.raises(ConnectionClosed) as closed:
            await read_until_closed(socket)
    assert closed.value.rcvd.code == 1001
    assert await process.wait() == 0


async def test_the_command_says_where_everything_is():
    arguments = ("-m", "medallion", "simulate", "--port", "0", "--until-stdin-ends")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    lines = [(await process.stderr.readline()).decode() for _ in range(3)]
    addresses = dict(line.rsplit(maxsplit=1) for line in lines)
    assert list(addresses) == ["WebSocket", "Advanced WebSocket", "REST"]
    async with httpx.AsyncClient(base_url=addresses["REST"], trust_env=False) as client:
        assert (await client.get("/products/BTC-USD")).status_code == 200
    async with connect(addresses["Advanced WebSocket"]) as socket:
        await socket.send('{"type":"subscribe","channel":"heartbeats"}')
        assert json.loads(await socket.recv())["channel"] == "subscriptions"
    process.stdin.close()
    assert await process.wait() == 0


# As a fixture: entered and left in different tasks


@pytest.fixture
async def exchange():
    async with Exchange(REPLAY) as exchange:
        yield exchange


async def test_an_exchange_can_be_a_fixture(exchange):
    async with reader(exchange, "BTC-USD") as socket:
        assert (await receive(socket, "last_match"))["product_id"] == "BTC-USD"


async def test_an_error_in_the_block_is_raised_as_it_is():
    with pytest.raises(KeyError):
        async with Exchange(REPLAY):
            raise KeyError
