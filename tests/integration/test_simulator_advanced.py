import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, ConnectionClosedOK

from simulator.exchange import Exchange, ExchangeConfig
from simulator.faults import Faults
from simulator.market import SECOND, micros
from simulator.server import Limits

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
QUICK = Limits(heartbeat_interval=0.05)
REPLAY = ExchangeConfig(
    start=NOON, end=NOON + timedelta(minutes=10), speed=None, limits=QUICK, seed=5
)
LIVE = ExchangeConfig(start=NOON, speed=600, limits=QUICK, seed=5)
FAULTY = Faults(duplicates=0.04, late=0.04, malformed=0.04, delay=30, seed=2)


def message(type_: str, channel: str, *product_ids: str) -> str:
    fields = {"type": type_, "channel": channel}
    return json.dumps(fields | ({"product_ids": list(product_ids)} if product_ids else {}))


@asynccontextmanager
async def reader(exchange: Exchange, *product_ids: str, heartbeats: bool = False):
    async with connect(exchange.advanced_ws_url, compression=None, close_timeout=0.1) as socket:
        await socket.send(message("subscribe", "market_trades", *product_ids))
        if heartbeats:
            await socket.send(message("subscribe", "heartbeats"))
        yield socket


async def receive(socket, channel: str) -> dict:
    """Return the next frame of a channel, passing over others."""
    async with asyncio.timeout(5):
        while (frame := json.loads(await socket.recv())).get("channel") != channel:
            pass
    return frame


async def read_all(exchange: Exchange, socket) -> list[str | bytes]:
    """Return all trade-carrying frames of a replay, malformed ones included."""
    frames: list[str | bytes] = []
    async with asyncio.timeout(10):
        while not exchange.finished or len(frames) < expected_frames(exchange):
            frame = await socket.recv()
            if isinstance(frame, bytes) or not frame.startswith(
                ('{"channel":"subscriptions"', '{"channel":"heartbeats"')
            ):
                frames.append(frame)
    return frames


def expected_frames(exchange: Exchange) -> int:
    sent = exchange.status().advanced
    return sent.frames_sent + sent.snapshots


def trades_of(frames) -> list[dict]:
    return [trade for frame in frames for trade in frame["events"][0]["trades"]]


def ids_of(frames, product_id: str) -> list[int]:
    return [int(t["trade_id"]) for t in trades_of(frames) if t["product_id"] == product_id]


async def read_until_closed(socket) -> None:
    while True:
        await socket.recv()


# Subscribing


async def test_a_snapshot_of_the_last_100_trades_comes_ahead_of_the_acknowledgement():
    async with Exchange(REPLAY) as exchange, reader(exchange, "BTC-USD", "ETH-USD") as socket:
        btc, eth, acknowledged, update = [json.loads(await socket.recv()) for _ in range(4)]
    for snapshot, product_id in ((btc, "BTC-USD"), (eth, "ETH-USD")):
        assert snapshot["events"][0]["type"] == "snapshot"
        ids = ids_of([snapshot], product_id)
        assert ids == list(range(ids[0], ids[0] - 100, -1))
    listed = {"market_trades": ["BTC-USD", "ETH-USD"]}
    assert acknowledged["events"] == [{"subscriptions": listed}]
    assert update["events"][0]["type"] == "update"


async def test_every_subscription_brings_a_snapshot_again():
    async with Exchange(LIVE) as exchange, reader(exchange, "BTC-USD") as socket:
        await receive(socket, "subscriptions")
        await socket.send(message("subscribe", "market_trades", "BTC-USD"))
        async with asyncio.timeout(5):
            while (await receive(socket, "market_trades"))["events"][0]["type"] != "snapshot":
                pass
        assert exchange.status().advanced.snapshots == 2


async def test_the_acknowledgement_lists_heartbeats_under_their_own_name():
    async with (
        Exchange(REPLAY) as exchange,
        reader(exchange, "BTC-USD", heartbeats=True) as socket,
    ):
        await receive(socket, "subscriptions")
        acknowledged = await receive(socket, "subscriptions")
    listed = {"heartbeats": ["heartbeats"], "market_trades": ["BTC-USD"]}
    assert acknowledged["events"] == [{"subscriptions": listed}]


async def test_a_usdc_subscription_yields_the_data_of_the_dollar_product():
    async with Exchange(REPLAY) as exchange, reader(exchange, "BTC-USDC") as socket:
        snapshot, update = [await receive(socket, "market_trades") for _ in range(2)]
    assert {trade["product_id"] for trade in trades_of([snapshot, update])} == {"BTC-USD"}


@pytest.mark.parametrize(
    ("product_id", "reason"),
    [
        ("XXX-USD", "XXX-USD is not a valid product"),
        ("USDT-USDC", "USDT-USDC is not a valid product"),
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
        assert ids_of([await receive(socket, "market_trades")], "BTC-USD")


@pytest.mark.parametrize(
    "text",
    [
        "{",
        '{"type":"hello","channel":"heartbeats"}',
        message("subscribe", "level3", "BTC-USD"),
        message("subscribe", "market_trades"),
        '{"type":"subscribe","channel":"market_trades","product_ids":"BTC-USD"}',
        '{"type":"subscribe","channels":[{"name":"matches","product_ids":["BTC-USD"]}]}',
    ],
)
async def test_a_message_that_makes_no_sense_is_answered_with_an_error(text):
    async with (
        Exchange(REPLAY) as exchange,
        connect(exchange.advanced_ws_url, close_timeout=0.1) as socket,
    ):
        await socket.send(text)
        assert json.loads(await socket.recv())["type"] == "error"


async def test_unsubscribing_ends_the_trades_of_a_product():
    async with Exchange(LIVE) as exchange, reader(exchange, "BTC-USD", "ETH-USD") as socket:
        await receive(socket, "subscriptions")
        await socket.send(message("unsubscribe", "market_trades", "BTC-USD"))
        assert (await receive(socket, "subscriptions"))["events"] == [
            {"subscriptions": {"market_trades": ["ETH-USD"]}}
        ]
        frames = [await receive(socket, "market_trades") for _ in range(20)]
        assert {trade["product_id"] for trade in trades_of(frames)} == {"ETH-USD"}


async def test_unsubscribing_a_whole_channel_leaves_the_connection_open():
    hasty = replace(LIVE, limits=replace(QUICK, subscribe_timeout=0.1))
    async with Exchange(hasty) as exchange, reader(exchange, "BTC-USD") as socket:
        await receive(socket, "subscriptions")
        await socket.send(message("unsubscribe", "market_trades"))
        assert (await receive(socket, "subscriptions"))["events"] == [{"subscriptions": {}}]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(socket.recv(), 0.3)


async def test_both_feeds_are_at_one_port():
    async with Exchange(LIVE) as exchange, connect(exchange.ws_url, close_timeout=0.1) as socket:
        channel = {"name": "matches", "product_ids": ["BTC-USD"]}
        await socket.send(json.dumps({"type": "subscribe", "channels": [channel]}))
        async with reader(exchange, "BTC-USD") as other:
            assert json.loads(await socket.recv())["type"] == "subscriptions"
            assert json.loads(await other.recv())["channel"] == "market_trades"


# Frames


async def test_sequence_numbers_count_the_frames_of_a_connection_over_all_channels():
    async with Exchange(LIVE) as exchange:
        for _ in range(2):
            async with reader(exchange, "BTC-USD", "ETH-USD", heartbeats=True) as socket:
                frames = [json.loads(await socket.recv()) for _ in range(200)]
            channels = {frame["channel"] for frame in frames}
            assert channels == {"market_trades", "heartbeats", "subscriptions"}
            assert [frame["sequence_num"] for frame in frames] == list(range(200))


async def test_heartbeats_count_up_by_one():
    async with (
        Exchange(LIVE) as exchange,
        connect(exchange.advanced_ws_url, close_timeout=0.1) as socket,
    ):
        await socket.send(message("subscribe", "heartbeats"))
        beats = [(await receive(socket, "heartbeats"))["events"][0] for _ in range(4)]
    counters = [beat["heartbeat_counter"] for beat in beats]
    assert counters == list(range(counters[0], counters[0] + 4))


async def test_a_replay_delivers_every_trade_once_and_finishes():
    async with Exchange(REPLAY) as exchange, reader(exchange, "BTC-USD", "ETH-USD") as socket:
        frames = [json.loads(frame) for frame in await read_all(exchange, socket)]
        spans = exchange.status().trades
        for product_id in ("BTC-USD", "ETH-USD"):
            ids = ids_of(frames, product_id)
            span = spans[product_id]
            assert sorted(ids) == list(range(span.first_id, span.last_id + 1))
            assert len(ids) == span.count > 300


async def test_the_last_trades_come_when_the_tape_ends_within_a_tenth_of_a_second():
    async with Exchange(REPLAY) as probe:
        tape = probe.market["BTC-USD"]
        last = tape.trade(tape.last_trade_id(probe.market_time) + 300)
    end = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=last.time + 1)
    async with Exchange(replace(REPLAY, end=end)) as exchange:
        async with reader(exchange, "BTC-USD") as socket:
            frames = [json.loads(frame) for frame in await read_all(exchange, socket)]
        assert max(ids_of(frames, "BTC-USD")) == exchange.status().trades["BTC-USD"].last_id


async def test_an_update_holds_what_one_product_traded_in_a_tenth_of_a_second():
    async with Exchange(REPLAY) as exchange, reader(exchange, "BTC-USD", "ETH-USD") as socket:
        frames = [json.loads(frame) for frame in await read_all(exchange, socket)]
    updates = [frame for frame in frames if frame["events"][0]["type"] == "update"]
    assert max(len(trades_of([frame])) for frame in updates) > 5
    for frame in updates:
        trades = trades_of([frame])
        assert len({trade["product_id"] for trade in trades}) == 1
        ids = [int(trade["trade_id"]) for trade in trades]
        assert ids == sorted(ids, reverse=True)
        times = [micros(datetime.fromisoformat(trade["time"])) for trade in trades]
        assert max(times) - min(times) < SECOND // 10
    btc = [frame for frame in updates if trades_of([frame])[0]["product_id"] == "BTC-USD"]
    ends = [micros(datetime.fromisoformat(frame["timestamp"])) for frame in btc[:-1]]
    assert all(b > a and (b - a) % (SECOND // 10) == 0 for a, b in pairwise(ends))


async def test_the_trades_are_those_of_the_exchange():
    async with Exchange(REPLAY) as exchange, reader(exchange, "PEPE-USD") as socket:
        frames = [json.loads(frame) for frame in await read_all(exchange, socket)]
        span = exchange.status().trades["PEPE-USD"]
        own = list(exchange.trades("PEPE-USD", span.first_id, span.last_id))
    received = sorted(trades_of(frames), key=lambda trade: int(trade["trade_id"]))
    assert len(own) == len(received)
    for trade, row in zip(received, own, strict=True):
        assert (int(trade["trade_id"]), trade["side"].lower()) == (row["trade_id"], row["side"])
        assert float(trade["price"]) == float(row["price"])
        assert float(trade["size"]) == float(row["size"])
        assert datetime.fromisoformat(trade["time"]) == datetime.fromisoformat(row["time"])


async def test_absent_ids_are_not_in_the_frames():
    async with Exchange(REPLAY) as probe:
        newest = probe.market["BTC-USD"].last_trade_id(probe.market_time)
    absent = {newest - 20, newest + 10}
    config = replace(REPLAY, absent={"BTC-USD": absent})
    async with Exchange(config) as exchange, reader(exchange, "BTC-USD") as socket:
        frames = [json.loads(frame) for frame in await read_all(exchange, socket)]
        span = exchange.status().trades["BTC-USD"]
    ids = ids_of(frames, "BTC-USD")
    assert len(trades_of(frames[:1])) == 100
    assert set(range(span.first_id, span.last_id + 1)) - set(ids) == absent
    assert len(ids) == span.count


# Silence


async def test_a_connection_that_hears_nothing_is_closed_unless_heartbeats_are_on():
    config = replace(REPLAY, limits=replace(QUICK, silence_timeout=0.3))
    async with (
        Exchange(config) as exchange,
        reader(exchange, "BTC-USD") as quiet,
        reader(exchange, "BTC-USD", heartbeats=True) as kept,
    ):
        closing = asyncio.create_task(asyncio.wait_for(read_until_closed(quiet), 5))
        hearing = asyncio.create_task(asyncio.wait_for(read_until_closed(kept), 1.5))
        with pytest.raises(ConnectionClosedOK):
            await closing
        with pytest.raises(TimeoutError):
            await hearing


@pytest.mark.parametrize("dying", ["feed", "advanced"])
@pytest.mark.parametrize("how", ["silence", "cut"])
async def test_one_feed_can_die_while_the_other_goes_on(dying, how):
    async with Exchange(LIVE) as exchange, connect(exchange.ws_url, close_timeout=0.1) as socket:
        channel = {"name": "matches", "product_ids": ["BTC-USD"]}
        await socket.send(json.dumps({"type": "subscribe", "channels": [channel]}))
        async with reader(exchange, "BTC-USD", heartbeats=True) as other:
            await socket.recv()
            await other.recv()
            dead, alive = (socket, other) if dying == "feed" else (other, socket)
            feed = getattr(exchange, dying)
            if how == "cut":
                await feed.drop_connections()
                with pytest.raises(ConnectionClosedError):
                    await read_until_closed(dead)
            else:
                feed.silent = True
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(read_until_closed(dead), 0.3)
                assert not exchange.silent
            for _ in range(100):
                await asyncio.wait_for(alive.recv(), 5)


async def test_a_replay_stands_still_while_its_only_feed_is_silent():
    async with Exchange(REPLAY) as exchange, reader(exchange, "BTC-USD") as socket:
        await socket.recv()
        exchange.advanced.silent = True
        await asyncio.sleep(0.1)
        begin = exchange.market_time
        await asyncio.sleep(0.1)
        assert exchange.market_time == begin
        assert not exchange.finished


async def test_a_silent_feed_stays_so_when_the_tape_ends():
    config = replace(REPLAY, speed=600, advanced_faults=Faults(late=1, late_by=timedelta(days=999)))
    async with Exchange(config) as exchange, reader(exchange, "BTC-USD") as socket:
        await receive(socket, "subscriptions")
        await asyncio.sleep(0.2)  # in which frames are held back
        exchange.advanced.silent = True
        async with asyncio.timeout(5):
            while not exchange.finished:  # noqa: ASYNC110  (a flag)
                await asyncio.sleep(0.02)
        assert exchange.status().advanced.frames_sent == 0
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(socket.recv(), 0.1)


async def test_a_slow_reader_is_disconnected():
    impatient = replace(LIVE, speed=50_000, limits=replace(QUICK, unread_bytes=100_000))
    async with Exchange(impatient) as exchange, reader(exchange, "BTC-USD") as socket:
        await asyncio.sleep(1)
        with pytest.raises(ConnectionClosed):
            await asyncio.wait_for(read_until_closed(socket), 10)


# Faults


async def test_dropped_frames_leave_a_jump_in_the_sequence_numbers():
    config = replace(REPLAY, advanced_faults=Faults(dropped=0.1))
    async with Exchange(config) as exchange, reader(exchange, "BTC-USD") as socket:
        frames = [json.loads(frame) for frame in await read_all(exchange, socket)]
        status = exchange.status()
    numbers = [frame["sequence_num"] for frame in frames]
    # One number in between is the acknowledgement's.
    missing = set(range(numbers[-1] + 1)) - set(numbers)
    assert len(missing) - 1 <= status.advanced.dropped
    assert len(missing) > 20
    ids = ids_of(frames, "BTC-USD")
    assert len(set(ids)) == len(ids) < status.trades["BTC-USD"].count


async def test_without_drops_every_trade_arrives_despite_the_other_faults():
    config = replace(REPLAY, advanced_faults=FAULTY)
    async with Exchange(config) as exchange, reader(exchange, "BTC-USD", "ETH-USD") as socket:
        frames = await read_all(exchange, socket)
        status = exchange.status()
    intact = [json.loads(frame) for frame in frames if is_intact(frame)]
    assert len(frames) - len(intact) == status.advanced.malformed > 10
    assert len(frames) == status.advanced.frames_sent + status.advanced.snapshots
    numbers = [frame["sequence_num"] for frame in intact]
    assert len(numbers) - len(set(numbers)) == status.advanced.duplicates > 10
    # A late frame comes after one with a higher number; so does a duplicate.
    backwards = sum(b < a for a, b in pairwise(numbers))
    assert backwards > status.advanced.late / 2 > 5
    for product_id, span in status.trades.items():
        assert len(set(ids_of(intact, product_id))) == span.count
    assert status.frames_sent == status.late == 0


def is_intact(frame: str | bytes) -> bool:
    """Whether each trade of a frame is one, as the market makes them."""
    try:
        trades = json.loads(frame)["events"][0]["trades"]
        return isinstance(frame, str) and all(
            list(trade) == ["product_id", "trade_id", "price", "size", "time", "side"]
            and float("inf") > float(trade["price"]) > 0 < float(trade["size"])
            and isinstance(trade["price"], str)
            and int(trade["trade_id"]) > 0
            and trade["side"] in {"BUY", "SELL"}
            and datetime.fromisoformat(trade["time"])
            for trade in trades
        )
    except (ValueError, KeyError, TypeError):
        return False


async def test_the_feeds_do_not_drop_the_same_trades():
    faults = Faults(dropped=0.2)
    config = replace(REPLAY, faults=faults, advanced_faults=faults)
    async with Exchange(config) as exchange, connect(exchange.ws_url) as socket:
        channel = {"name": "matches", "product_ids": ["BTC-USD"]}
        await socket.send(json.dumps({"type": "subscribe", "channels": [channel]}))
        async with reader(exchange, "BTC-USD") as other, asyncio.timeout(10):
            frames = await read_all(exchange, other)
            matches = set()
            while len(matches) < expected_matches(exchange):
                matches.add(json.loads(await socket.recv()).get("trade_id"))
        span = exchange.status().trades["BTC-USD"]
    # The oldest trades are those of the snapshot alone.
    first_id = min(matches - {None})
    advanced = ids_of(map(json.loads, frames), "BTC-USD")
    missing = set(range(first_id, span.last_id + 1)) - set(advanced)
    assert len(missing) > 50
    assert len(missing - matches) < len(missing) / 3


def expected_matches(exchange: Exchange) -> int:
    status = exchange.status()
    return status.frames_sent + status.last_matches + 1  # frames without an id are one more


async def test_the_same_seed_spoils_the_same_frames():
    config = replace(REPLAY, advanced_faults=replace(FAULTY, dropped=0.04))
    received = []
    for _ in range(2):
        async with Exchange(config) as exchange, reader(exchange, "BTC-USD") as socket:
            received.append(await read_all(exchange, socket))
    assert received[0] == received[1]


async def test_late_frames_can_be_late_by_market_time():
    faults = Faults(late=0.05, late_by=timedelta(minutes=5))
    config = replace(REPLAY, faults=faults, advanced_faults=faults)
    async with Exchange(config) as exchange, reader(exchange, "BTC-USD") as socket:
        frames = [json.loads(frame) for frame in await read_all(exchange, socket)]
        count = exchange.status().trades["BTC-USD"].count
    assert len(set(ids_of(frames, "BTC-USD"))) == count
    newest, waits = NOON, []
    for frame in frames:
        at = datetime.fromisoformat(frame["timestamp"])
        waits.append(newest - at)
        newest = max(newest, at)
    assert timedelta(minutes=3) < max(waits) < timedelta(minutes=5, seconds=10)
