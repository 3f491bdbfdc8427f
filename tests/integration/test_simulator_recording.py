import asyncio
import json
from datetime import UTC, datetime

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from simulator.frames import heartbeat_frame, match_frame
from simulator.market import SECOND, Market, micros
from simulator.recording import Recording, RecordingServer
from simulator.server import Limits

QUICK = Limits(heartbeat_interval=0.05)
NOON = micros(datetime(2026, 11, 23, 12, tzinfo=UTC))
MARKET = Market(seed=11)


@pytest.fixture
def path(tmp_path):
    """A recording of two products, as a recorder would have written it."""
    lines = [b'{"type":"subscriptions","channels":[]}']
    for product_id in ("BTC-USD", "ETH-USD"):
        last_id = MARKET[product_id].last_trade_id(NOON)
        lines.append(match_frame(MARKET[product_id].trade(last_id), "last_match"))
    for trade in MARKET.between(("BTC-USD", "ETH-USD"), NOON, NOON + 60 * SECOND):
        lines.append(match_frame(trade))
        if trade.trade_id % 10 == 0:
            lines.append(heartbeat_frame(trade.product_id, trade.trade_id, 1, trade.time))
    # Bytes no renderer would write, to see that they come through untouched.
    lines.append(lines[-1].replace(b":", b" : ", 1))
    file = tmp_path / "recorded.jsonl"
    file.write_bytes(b"\n".join(lines) + b"\n")
    return file


def subscribe(*product_ids: str) -> str:
    ids = list(product_ids)
    channels = [{"name": name, "product_ids": ids} for name in ("matches", "heartbeat")]
    return json.dumps({"type": "subscribe", "channels": channels})


def of(product_ids: set[str], file) -> list[str]:
    lines = file.read_text().splitlines()[1:]
    return [line for line in lines if json.loads(line)["product_id"] in product_ids]


async def play(server: RecordingServer, count: int, *product_ids: str) -> list[str]:
    async with connect(server.ws_url) as socket, asyncio.timeout(5):
        await socket.send(subscribe(*product_ids))
        return [await socket.recv() for _ in range(count + 1)]


async def test_the_recorded_bytes_come_through_in_order(path):
    expected = of({"BTC-USD", "ETH-USD"}, path)
    async with RecordingServer(Recording.load(path), limits=QUICK) as server:
        acknowledged, *frames = await play(server, len(expected), "BTC-USD", "ETH-USD")
    assert json.loads(acknowledged)["type"] == "subscriptions"
    assert frames == expected


async def test_only_the_subscribed_products_are_played(path):
    expected = of({"ETH-USD"}, path)
    async with RecordingServer(Recording.load(path), limits=QUICK) as server:
        assert (await play(server, len(expected), "ETH-USD"))[1:] == expected


async def test_after_the_last_frame_the_last_heartbeats_repeat(path):
    expected = of({"BTC-USD", "ETH-USD"}, path)
    async with RecordingServer(Recording.load(path), limits=QUICK) as server:
        frames = await play(server, len(expected) + 4, "BTC-USD", "ETH-USD")
    repeated = frames[-4:]
    assert {json.loads(frame)["type"] for frame in repeated} == {"heartbeat"}
    assert set(repeated) <= set(expected)


async def test_the_status_counts_the_recorded_trades(path):
    expected = of({"BTC-USD"}, path)
    trades = [json.loads(line) for line in expected if "maker_order_id" in line]
    ids = {trade["trade_id"] for trade in trades}
    async with RecordingServer(Recording.load(path), limits=QUICK) as server:
        await play(server, len(expected), "BTC-USD")
        async with httpx.AsyncClient(trust_env=False) as client:
            status = (await client.get(f"{server.rest_url}/simulator/status")).json()
    offered = {"first_id": min(ids), "last_id": max(ids), "count": len(ids)}
    assert status["finished"] is True
    assert status["trades"] == {"BTC-USD": offered}
    assert status["frames_sent"] + status["last_matches"] == len(trades)


async def test_a_product_that_was_not_recorded_is_refused(path):
    async with RecordingServer(Recording.load(path), limits=QUICK) as server:
        (error,) = await play(server, 0, "SOL-USD")
    assert json.loads(error)["reason"] == "SOL-USD is not a valid product"


async def test_the_socket_is_at_the_recordings_path_alone(path):
    async with RecordingServer(Recording.load(path), limits=QUICK) as server:
        assert server.ws_url.endswith("/recordings/recorded.jsonl")
        with pytest.raises(InvalidStatus):
            await connect(f"ws://127.0.0.1:{server.port}/")


def test_a_recording_knows_its_products(path):
    assert Recording.load(path).products == ("BTC-USD", "ETH-USD")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "holds no trade"),
        ('{"type":"subscriptions","channels":[]}\n', "holds no trade"),
        ("price,size\n1,2\n", "Line 1 .* is not a JSON object"),
        ("[]\n", "Line 1 .* is not a JSON object"),
        ('{"type":"match"}\n', "Line 1 .* without product, time or trade id"),
        ('{"channel":"market_trades","events":[]}\n', "Advanced Trade feed"),
    ],
)
def test_a_file_that_is_no_recording_is_refused(tmp_path, content, sentence):
    file = tmp_path / "bad.jsonl"
    file.write_text(content)
    with pytest.raises(ValueError, match=sentence):
        Recording.load(file)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Can't read"):
        Recording.load(tmp_path / "none.jsonl")
