"""The REST client against a real server, which answers as it is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest
from structlog.testing import capture_logs

from ingestion.coinbase.rest import Product, RestClient, RestRefusedError
from ingestion.errors import FatalRestError
from tests.integration.test_ingestion_feed import wait_for

TRADE = (
    b'{"trade_id":1089999999,"side":"sell","size":"0.00041454","price":"79109.05000000",'
    b'"time":"2026-09-30T02:03:12.257184Z"}'
)


def answer(status: str, body: bytes = b"", **headers: str) -> bytes:
    """Return an HTTP answer; its Content-Length can be given to lie."""
    told = {"Content-Length": str(len(body)), "Connection": "close", **headers}
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in told.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


@dataclass
class Server:
    """Gives its answers one after the other, the last for ever; keeps what it was asked."""

    answers: list[bytes | None]
    """None: the connection ends without one."""
    url: str = ""
    asked: list[str] = field(default_factory=list)
    asked_at: list[float] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.asked.append(head.split(b" ")[1].decode())
        self.asked_at.append(asyncio.get_running_loop().time())
        told = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if told is not None:
            writer.write(told)
        writer.close()


@asynccontextmanager
async def serving(*answers: bytes | None) -> AsyncIterator[Server]:
    server = Server(list(answers))
    async with await asyncio.start_server(server.serve, "127.0.0.1", 0) as listening:
        server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/"
        yield server


def client(server: Server, **changes: float | Callable[[float], float]) -> RestClient:
    return RestClient(server.url, **{"jitter": lambda most: most / 50, **changes})  # type: ignore[arg-type]


async def test_trades_are_asked_for_by_cursor_and_kept_as_they_came() -> None:
    async with serving(answer("200 OK", b"[" + TRADE + b"]")) as server, client(server) as rest:
        (trade,) = await rest.trades("BTC-USD", after=1090000000)

    assert server.asked == ["/products/BTC-USD/trades?limit=1000&after=1090000000"]
    assert trade.payload == TRADE
    assert trade.trade_id == 1089999999
    assert trade.time == datetime(2026, 9, 30, 2, 3, 12, 257184, tzinfo=UTC)


async def test_products_tell_which_are_traded() -> None:
    catalogue = [
        {"id": "BTC-USD", "status": "online", "trading_disabled": False},
        {"id": "ETH-USD", "status": "online", "trading_disabled": True},
        {"id": "YFI-USD", "status": "delisted", "trading_disabled": True, "unknown": {}},
    ]
    body = json.dumps(catalogue).encode()
    async with serving(answer("200 OK", body)) as server, client(server) as rest:
        products = await rest.products()

    assert products[0] == Product("BTC-USD", "online", trading_disabled=False)
    assert [product.is_traded for product in products] == [True, False, False]


async def test_one_unreadable_product_leaves_the_others() -> None:
    body = b'[{"id":5},{"id":"X\xff"},{"id":"BTC-USD","status":"online"},null]'
    async with serving(answer("200 OK", body)) as server, client(server) as rest:
        with capture_logs() as logs:
            products = await rest.products()

    assert products == [Product("BTC-USD", "online")]
    assert [(e["event"], e["products"]) for e in logs] == [("rest_products_unreadable", 3)]


@pytest.mark.parametrize(
    "passing",
    [
        answer("500 Internal Server Error"),
        answer("503 Service Unavailable", b"<html>"),
        answer("429 Too Many Requests", b'{"message":"Public rate limit exceeded"}'),
        answer("403 Forbidden"),
        answer("302 Found", Location="https://status.example.com"),
        answer("200 OK", b"[" + TRADE[:40], **{"Content-Length": "4000"}),
        answer("200 OK", b"[" + TRADE[:40]),
        answer("200 OK", b'{"message":"maintenance"}'),
        answer("200 OK", b'[{"trade_id":"new format"}]'),
        answer("200 OK", b"no gzip", **{"Content-Encoding": "gzip"}),
        None,
    ],
    ids=[
        *("500", "503", "429", "403", "302", "cut_off", "truncated", "no_list"),
        *("no_trade", "no_gzip", "no_answer"),
    ],
)
async def test_what_may_pass_is_tried_again(passing: bytes | None) -> None:
    good = answer("200 OK", b"[" + TRADE + b"]")
    async with serving(passing, passing, good) as server, client(server) as rest:
        with capture_logs() as logs:
            trades = await rest.trades("BTC-USD")

    assert [trade.trade_id for trade in trades] == [1089999999]
    assert [entry["event"] for entry in logs] == ["rest_retry", "rest_retry"]


async def test_an_answer_that_never_comes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingestion.coinbase.rest.TIMEOUT_SECONDS", 0.2)

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        if len(connections) > 1:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer("200 OK", b"[]"))
            writer.close()

    connections: list[asyncio.StreamWriter] = []
    async with await asyncio.start_server(hang, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        async with RestClient(f"http://127.0.0.1:{port}", jitter=lambda _: 0) as rest:
            assert await rest.trades("BTC-USD") == []
        connections[0].close()
    assert len(connections) == 2


async def test_retry_after_makes_every_request_wait() -> None:
    limited = answer("429 Too Many Requests", **{"Retry-After": "1"})
    async with (
        serving(limited, answer("200 OK", b"[]")) as server,
        client(server, requests_per_second=1000) as rest,
    ):
        first = asyncio.create_task(rest.trades("BTC-USD"))
        await wait_for(lambda: len(server.asked) == 1)
        await asyncio.sleep(0.1)
        await asyncio.gather(first, rest.trades("ETH-USD"))

    waits = [at - server.asked_at[0] for at in server.asked_at[1:]]
    assert len(waits) == 2
    assert min(waits) >= 0.95


async def test_requests_are_spread_over_the_second_that_allows_them() -> None:
    async with (
        serving(answer("200 OK", b"[]")) as server,
        client(server, requests_per_second=20) as rest,
    ):
        await asyncio.gather(*(rest.trades("BTC-USD") for _ in range(8)))

    # Each begins a twentieth of a second after the one before; on a busy machine it may be later.
    assert server.asked_at[-1] - server.asked_at[0] >= 7 / 20 - 0.02


@pytest.mark.parametrize("status", ["404 Not Found", "400 Bad"])
async def test_what_will_not_pass_is_told(status: str) -> None:
    async with serving(answer(status, b'{"message":"NotFound"}')) as server, client(server) as rest:
        with pytest.raises(
            RestRefusedError, match=r"/products/NO-USD/trades answers HTTP 40\d: .*NotFound"
        ):
            await rest.trades("NO-USD")
    assert len(server.asked) == 1


async def test_one_unreadable_trade_leaves_the_others() -> None:
    body = b'[{"trade_id":"x"},' + TRADE + b',7,{"trade_id":5,"time":"yesterday"}]'
    async with serving(answer("200 OK", body)) as server, client(server) as rest:
        with capture_logs() as logs:
            trades = await rest.trades("BTC-USD")

    assert [trade.payload for trade in trades] == [TRADE]
    assert [(entry["event"], entry["trades"]) for entry in logs] == [("rest_trades_unreadable", 3)]


def test_a_proxy_that_cannot_be_used_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "foo://proxy")
    with pytest.raises(FatalRestError, match=r"proxy from the environment can't be used.*NO_PROXY"):
        RestClient("http://127.0.0.1:1")
