"""How long a trade takes to its candle: a feed, the ingester, and the continuous transform.

    .venv/bin/python -m benchmarks.latency [--full]

An exchange of its own sends trades that happen now, at an even rate. A trade has arrived when the
candle of its minute, as a BI tool reads it, has its id. All of it runs on this machine, with a new
embedded server in a temporary folder.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import defaultdict, deque
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final

import asyncpg
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from benchmarks.measure import environment, load, machine, options, running, table, tell, warehouse
from ingestion.bronze import Connection
from warehouse.settings import Role, WarehouseSettings

PRODUCTS: Final = [f"COIN{number}-USD" for number in range(10)]
RATE: Final = 500
"""Trades per second."""
TICK_SECONDS: Final = 0.01
POLL_SECONDS: Final = 0.05
START_SECONDS: Final = 300
"""How long the processes may take to start, until trades are in candles."""
SHORT: Final = (("5s", 20),)
"""What `medallion transform` is told by --every, and for how many seconds trades are measured."""
FULL: Final = (("5s", 90), ("3s", 90), ("2s", 90))
ARRIVED: Final = """
select product_id, max(last_trade_id) as trade_id from gold.ohlc_1m
where bucket_1m >= $1
group by product_id
"""


class Feed:
    """Sends `rate` trades a second to whoever subscribes, and notes when each happened."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self.sent: dict[str, deque[tuple[int, float]]] = defaultdict(deque)

    async def _send(self, socket: ServerConnection) -> None:
        with suppress(ConnectionClosed):
            await self._send_matches(socket)

    async def _send_matches(self, socket: ServerConnection) -> None:
        await socket.recv()
        channels = [{"name": "matches", "product_ids": PRODUCTS}]
        await socket.send(json.dumps({"type": "subscriptions", "channels": channels}))
        began, trades = time.time(), 0
        while True:
            while trades < (time.time() - began) * self._rate:
                trade_id, product = divmod(trades, len(PRODUCTS))
                await socket.send(self._match(PRODUCTS[product], trade_id + 1))
                trades += 1
            await asyncio.sleep(TICK_SECONDS)

    def _match(self, product_id: str, trade_id: int) -> str:
        now = time.time()
        self.sent[product_id].append((trade_id, now))
        return json.dumps(
            {
                "type": "match",
                "trade_id": trade_id,
                "maker_order_id": "5f4bb11b-f065-4025-ad53-2091b10ad2cf",
                "taker_order_id": "66715b57-0167-4ae9-8b2b-75a064a923f4",
                "side": "sell" if trade_id % 2 else "buy",
                "size": "0.01",
                "price": str(100 + trade_id % 7),
                "product_id": product_id,
                "sequence": trade_id,
                "time": datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            }
        )

    async def open(self) -> Server:
        """Listen on a free port."""
        return await serve(self._send, "127.0.0.1", 0)


async def measure(settings: WarehouseSettings, every: str, seconds: float) -> list[str]:
    """Let the trades of so many seconds arrive, and return a row that tells how long they took."""
    feed = Feed(RATE)
    server = await feed.open()
    port = server.sockets[0].getsockname()[1]
    variables = environment(settings) | {
        "COINBASE_FEED": "exchange",
        "COINBASE_WS_URL": f"ws://127.0.0.1:{port}",
        "COINBASE_PRODUCTS": ",".join(PRODUCTS),
    }
    medallion = [sys.executable, "-m", "medallion"]
    latencies: list[float] = []
    with (
        running([*medallion, "transform", "--every", every], **variables),
        running([*medallion, "ingest"], **variables),
    ):
        began = datetime.now(UTC).replace(second=0, microsecond=0)
        reader = await settings.connection(Role.READER).connect()
        async with asyncio.timeout(START_SECONDS):
            while not await arrived(reader, began):  # noqa: ASYNC110  (rows, not events)
                await asyncio.sleep(1)
        # What happened before is no part of it: it waited for the start.
        since = time.time()
        until = since + seconds
        # To the last: those that are quick would else count for more.
        while waiting_before(feed, until):
            for product_id, trade_id in await arrived(reader, began):
                now, waiting = time.time(), feed.sent[product_id]
                while waiting and waiting[0][0] <= trade_id:
                    happened_at = waiting.popleft()[1]
                    if since <= happened_at < until:
                        latencies.append(now - happened_at)
            await asyncio.sleep(POLL_SECONDS)
        await reader.close()
    server.close()
    latencies.sort()
    quantiles = [latencies[int(share * (len(latencies) - 1))] for share in (0.5, 0.95, 0.99, 1)]
    trades = f"{len(latencies):,} in {seconds:g} s"
    return [f"`{every}`", trades, *(f"{value:.1f} s" for value in quantiles), f"{load():.1f}"]


async def arrived(reader: Connection, since: datetime) -> list[asyncpg.Record]:
    """Return the newest trade in the candles of each product; none before there is a table."""
    if await reader.fetchval("select to_regclass('gold.ohlc_1m')") is None:
        return []
    return await reader.fetch(ARRIVED, since)


def waiting_before(feed: Feed, until: float) -> bool:
    """Tell whether trades that happened before a time have not arrived, or may still happen."""
    return time.time() < until or any(
        waiting and waiting[0][1] < until for waiting in feed.sent.values()
    )


def main() -> None:
    """Measure on a server of its own, each pace on a new one."""
    paces = FULL if options(__doc__).parse_args().full else SHORT
    load_before = load()
    rows = []
    for every, seconds in paces:
        with warehouse() as settings:
            rows.append(asyncio.run(measure(settings, every, seconds)))
            told = machine(settings, load_before)
        tell(" ".join(rows[-1]))
    within = [f"{share} within" for share in ("half", "95 %", "99 %", "all")]
    print(table(["`--every`", f"trades, {RATE} a second", *within, "load"], rows))
    print(f"\n{told}")


if __name__ == "__main__":
    main()
