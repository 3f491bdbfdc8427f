"""The feed against a real socket."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import pytest
from structlog.testing import capture_logs
from websockets.asyncio.client import connect
from websockets.asyncio.server import Request, Response, ServerConnection, serve

from ingestion.coinbase.feed import MAX_FRAME_BYTES, ExchangeFeed
from ingestion.coinbase.wire import AdvancedMessage, Message
from ingestion.errors import FatalFeedError

PRODUCTS = ("BTC-USD", "ETH-USD")
Script = Callable[[ServerConnection, int], Awaitable[None]]


def match(trade_id: int, product_id: str = "BTC-USD") -> str:
    return json.dumps(
        {
            "type": "match",
            "trade_id": trade_id,
            "side": "sell",
            "size": "0.01",
            "price": "83420.21",
            "product_id": product_id,
            "time": "2026-09-30T02:03:12.751234Z",
        }
    )


def subscriptions(*products: str) -> str:
    channels = [{"name": name, "product_ids": products} for name in ("matches", "heartbeat")]
    return json.dumps({"type": "subscriptions", "channels": channels if products else []})


def refused(product_id: str) -> str:
    reason = f"{product_id} is not a valid product"
    return json.dumps({"type": "error", "message": "Failed to subscribe", "reason": reason})


@dataclass
class Exchange:
    """A server that follows a script, told with each connection its number from 0."""

    url: str = ""
    subscribed_with: list[dict[str, object]] = field(default_factory=list)
    answers: list[HTTPStatus] = field(default_factory=list)
    """Handshakes to refuse first, one status each."""


@asynccontextmanager
async def exchange(script: Script, *answers: HTTPStatus) -> AsyncIterator[Exchange]:
    running = Exchange(answers=list(answers))

    def handshake(connection: ServerConnection, _request: Request) -> Response | None:
        if not running.answers:
            return None
        response = connection.respond(running.answers.pop(0), "")
        if response.status_code == HTTPStatus.FOUND:
            response.headers["Location"] = "https://status.example/maintenance"
        return response

    async def connection(socket: ServerConnection) -> None:
        number = len(running.subscribed_with)
        running.subscribed_with.append(json.loads(await socket.recv()))
        await script(socket, number)

    async with serve(
        connection, "127.0.0.1", 0, process_request=handshake, close_timeout=0.2
    ) as server:
        port = server.sockets[0].getsockname()[1]
        running.url = f"ws://127.0.0.1:{port}"
        yield running


async def wait_for(condition: Callable[[], bool], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  (the conditions are rows in a database, not events)
            await asyncio.sleep(0.01)


async def stay(socket: ServerConnection) -> None:
    await socket.wait_closed()


class Sink:
    """Keeps what the feed hands on; `places` bounds how much it takes until `free` is set."""

    def __init__(self, places: int = 1000) -> None:
        self.places = places
        self.free = asyncio.Event()
        self.frames: list[bytes] = []
        self.bad: list[tuple[bytes, str]] = []
        self.heartbeats: list[Message] = []
        self.others: list[object] = []
        self.products: list[tuple[str, ...]] = []
        self.ends: list[str] = []
        self.opens = 0
        self.trades: list[tuple[str, int]] = []
        self.dropped: list[tuple[str, ...]] = []

    @property
    def trade_ids(self) -> list[int]:
        return [json.loads(frame)["trade_id"] for frame in self.frames]

    def opened(self, url: str, products: tuple[str, ...]) -> None:
        self.opens += 1

    def subscribed(self, products: tuple[str, ...]) -> None:
        self.products.append(products)

    def closed(self, reason: str) -> None:
        self.ends.append(reason)

    def arrived(self) -> None:
        pass

    def match(self, frame: bytes, message: Message) -> bool:
        self.frames.append(frame)
        return len(self.frames) < self.places

    def market_trades(self, frame: bytes, message: AdvancedMessage) -> bool:
        self.trades += message.trades()
        self.frames.append(frame)
        return len(self.frames) < self.places

    def frames_dropped(self, products: tuple[str, ...]) -> None:
        self.dropped.append(products)

    def unreadable(self, frame: bytes, error: str) -> bool:
        self.bad.append((frame, error))
        return True

    def heartbeat(self, message: Message) -> None:
        self.heartbeats.append(message)

    def other(self, kind: object) -> None:
        self.others.append(kind)

    async def room(self) -> None:
        if len(self.frames) >= self.places:
            await self.free.wait()


@asynccontextmanager
async def reading(
    url: str, sink: Sink, silence_seconds: float = 5
) -> AsyncIterator[asyncio.Task[None]]:
    feed = ExchangeFeed(
        url, PRODUCTS, silence_seconds=silence_seconds, sink=sink, jitter=lambda most: most / 20
    )
    task = asyncio.create_task(feed.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def failure(url: str, sink: Sink | None = None) -> str:
    async with reading(url, sink or Sink()) as task, asyncio.timeout(10):
        with pytest.raises(FatalFeedError) as caught:
            await task
    return str(caught.value)


async def test_subscribes_to_trades_and_heartbeats_of_each_product() -> None:
    async def script(socket: ServerConnection, _number: int) -> None:
        await socket.send(subscriptions(*PRODUCTS))
        await socket.send(match(1).replace("match", "last_match"))
        await socket.send('{"type":"heartbeat","last_trade_id":1,"product_id":"BTC-USD"}')
        await socket.send('{"type":"status"}')
        await socket.send(match(2))
        await stay(socket)

    sink = Sink()
    async with exchange(script) as server, reading(server.url, sink):
        await wait_for(lambda: len(sink.frames) == 2)

    assert server.subscribed_with == [
        {
            "type": "subscribe",
            "channels": [
                {"name": "matches", "product_ids": list(PRODUCTS)},
                {"name": "heartbeat", "product_ids": list(PRODUCTS)},
            ],
        }
    ]
    assert sink.trade_ids == [1, 2]
    assert [heartbeat.last_trade_id for heartbeat in sink.heartbeats] == [1]
    assert sink.others == ["subscriptions", "status"]
    assert sink.products == [PRODUCTS]
    assert sink.ends == ["stopped"]


@pytest.mark.parametrize("code", [1000, 1001, 1011, 1013, None])
async def test_reconnects_however_the_connection_ends(code: int | None) -> None:
    async def script(socket: ServerConnection, number: int) -> None:
        await socket.send(match(number))
        if number == 2:
            await stay(socket)
        elif code is None:
            await socket.send(match(100))
            await asyncio.sleep(0.05)
            socket.transport.abort()
        else:
            await socket.close(code, "bye")

    sink = Sink()
    async with exchange(script) as server, reading(server.url, sink):
        await wait_for(lambda: 2 in sink.trade_ids)

    assert sink.opens == 3
    assert len(sink.ends) == 3
    expected = "no close frame" if code is None else f"received {code}"
    assert all(expected in reason for reason in sink.ends[:2])


async def test_a_silent_socket_is_left_for_a_new_one() -> None:
    async def script(socket: ServerConnection, number: int) -> None:
        await socket.send(match(number))
        await stay(socket)

    sink = Sink()
    with capture_logs() as logs:
        async with exchange(script) as server, reading(server.url, sink, silence_seconds=0.2):
            await wait_for(lambda: len(sink.frames) >= 2)

    assert sink.trade_ids[:2] == [0, 1]
    assert sink.ends[0] == "no frame for 0.2 s"
    assert [entry["event"] for entry in logs][:4] == [
        "connected",
        "silent",
        "disconnected",
        "connected",
    ]


async def test_a_socket_that_speaks_now_and_then_is_kept() -> None:
    async def script(socket: ServerConnection, _number: int) -> None:
        for trade_id in range(5):
            await socket.send(match(trade_id))
            await asyncio.sleep(0.2)
        await stay(socket)

    sink = Sink()
    async with exchange(script) as server, reading(server.url, sink, silence_seconds=0.4):
        await wait_for(lambda: len(sink.frames) == 5)

    assert sink.opens == 1


async def test_a_process_that_stood_still_hears_what_waits() -> None:
    async def script(socket: ServerConnection, _number: int) -> None:
        await socket.send(match(1))
        await asyncio.sleep(0.1)
        await socket.send(match(2))
        time.sleep(1)  # noqa: ASYNC251  (stands for a suspended process)
        for trade_id in range(3, 10):
            await socket.send(match(trade_id))
            await asyncio.sleep(0.1)
        await stay(socket)

    sink = Sink()
    async with exchange(script) as server, reading(server.url, sink, silence_seconds=0.6):
        await wait_for(lambda: 9 in sink.trade_ids)

    assert sink.trade_ids == list(range(1, 10))
    assert sink.opens == 1


async def test_waiting_for_room_is_no_silence() -> None:
    async def script(socket: ServerConnection, _number: int) -> None:
        for trade_id in range(6):
            await socket.send(match(trade_id))
        await stay(socket)

    sink = Sink(places=3)
    async with exchange(script) as server, reading(server.url, sink, silence_seconds=0.2):
        await wait_for(lambda: len(sink.frames) == 3)
        await asyncio.sleep(0.5)
        assert sink.trade_ids == [0, 1, 2]
        sink.free.set()
        await wait_for(lambda: len(sink.frames) == 6)

    assert sink.opens == 1


async def test_a_full_buffer_costs_no_frame_of_a_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def with_pings_soon(url: str, **options: Any) -> Any:
        soon = {name: options[name] and 0.1 for name in options if name.startswith("ping_")}
        return connect(url, **{**options, **soon})

    monkeypatch.setattr("ingestion.coinbase.feed.connect", with_pings_soon)
    # More than the buffers of both sockets hold, so the client stops reading.
    count, padding = 20_000, " " * 400

    async def script(socket: ServerConnection, _number: int) -> None:
        for trade_id in range(count):
            await socket.send(match(trade_id) + padding)
        await stay(socket)

    sink = Sink(places=3)
    async with exchange(script) as server, reading(server.url, sink):
        await wait_for(lambda: len(sink.frames) == 3)
        await asyncio.sleep(0.6)
        sink.free.set()
        await wait_for(lambda: len(sink.frames) == count, 30)

    assert sink.opens == 1


@pytest.mark.parametrize(
    "status",
    [
        HTTPStatus.INTERNAL_SERVER_ERROR,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.UNAUTHORIZED,
        HTTPStatus.FORBIDDEN,
        HTTPStatus.OK,
        HTTPStatus.FOUND,
    ],
)
async def test_a_refused_handshake_is_tried_again(status: HTTPStatus) -> None:
    async def script(socket: ServerConnection, number: int) -> None:
        await socket.send(match(number))
        await stay(socket)

    sink = Sink()
    async with exchange(script, status, status) as server, reading(server.url, sink):
        await wait_for(lambda: sink.trade_ids == [0])


async def test_an_address_where_nobody_listens_is_tried_again(unused_tcp_port: int) -> None:
    with capture_logs() as logs:
        async with reading(f"ws://127.0.0.1:{unused_tcp_port}", Sink()) as task:
            await wait_for(lambda: len(logs) >= 3)
            assert not task.done()

    assert {entry["event"] for entry in logs} == {"disconnected"}
    assert logs[0]["retry_in"] < logs[2]["retry_in"]


async def test_a_frame_that_is_not_utf8_arrives_and_the_connection_lives() -> None:
    async def script(socket: ServerConnection, _number: int) -> None:
        await socket.send(b'{"type":"\xff"}', text=True)
        await socket.send("[]")
        await socket.send(match(1))
        await stay(socket)

    sink = Sink()
    async with exchange(script) as server, reading(server.url, sink):
        await wait_for(lambda: sink.trade_ids == [1])

    assert sink.bad == [
        (b'{"type":"\xff"}', "not UTF-8: invalid start byte at byte 9"),
        (b"[]", "JSON but no object"),
    ]
    assert sink.opens == 1


async def test_a_frame_past_the_limit_ends_only_its_connection() -> None:
    async def script(socket: ServerConnection, number: int) -> None:
        if number == 0:
            await socket.send("x" * (MAX_FRAME_BYTES + 1))
        await socket.send(match(number))
        await stay(socket)

    sink = Sink()
    async with exchange(script) as server, reading(server.url, sink):
        await wait_for(lambda: sink.trade_ids == [1])

    assert "message too big" in sink.ends[0]


async def test_one_bad_product_leaves_the_others() -> None:
    async def script(socket: ServerConnection, _number: int) -> None:
        await socket.send(refused("ETH-USD"))
        await socket.send(subscriptions("BTC-USD"))
        await socket.send(match(1))
        await stay(socket)

    sink = Sink()
    with capture_logs() as logs:
        async with exchange(script) as server, reading(server.url, sink):
            await wait_for(lambda: sink.trade_ids == [1])

    assert sink.products == [("BTC-USD",)]
    assert {
        "event": "subscription_refused",
        "log_level": "warning",
        "products": ["ETH-USD"],
        "message": "Failed to subscribe",
        "reason": "ETH-USD is not a valid product",
    } in logs


@pytest.mark.parametrize("answers", [[refused(name) for name in PRODUCTS], [subscriptions()]])
async def test_no_valid_product_is_fatal(answers: list[str]) -> None:
    async def script(socket: ServerConnection, _number: int) -> None:
        for answer in answers:
            await socket.send(answer)
        await stay(socket)

    async with exchange(script) as server:
        told = await failure(server.url)

    assert told.startswith("There is no valid product among BTC-USD, ETH-USD.")
    assert "Set COINBASE_PRODUCTS" in told


async def test_products_refused_after_they_worked_are_tried_again() -> None:
    async def script(socket: ServerConnection, number: int) -> None:
        await socket.send(subscriptions() if number == 1 else subscriptions(*PRODUCTS))
        if number > 0:
            await socket.send(match(number))
            await stay(socket)

    sink = Sink()
    async with exchange(script) as server, reading(server.url, sink):
        await wait_for(lambda: sink.trade_ids == [2])


async def test_a_url_without_a_feed_is_fatal() -> None:
    async def script(_socket: ServerConnection, _number: int) -> None:
        raise AssertionError

    async with exchange(script, HTTPStatus.NOT_FOUND) as server:
        told = await failure(server.url)

    assert told == (
        f"There is no feed at {server.url}: it answers HTTP 404. Correct COINBASE_WS_URL."
    )


@pytest.mark.parametrize("url", ["https://127.0.0.1:1", "ws://", "feed"])
async def test_a_url_of_another_scheme_is_fatal(url: str) -> None:
    assert (await failure(url)).startswith(f"COINBASE_WS_URL is {url!r}")


@pytest.mark.parametrize(
    ("proxy", "told"),
    [
        ("socks5://me:hunter2@127.0.0.1:1", "requires python-socks"),
        ("ftp://me:hunter2@127.0.0.1:1", "scheme ftp isn't supported"),
    ],
)
async def test_a_proxy_that_is_none_is_fatal_and_its_password_not_shown(
    monkeypatch: pytest.MonkeyPatch, proxy: str, told: str
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", proxy)

    message = await failure("wss://198.51.100.1")

    assert message.startswith("The proxy from the environment can't be used")
    assert told in message
    assert "hunter2" not in message
