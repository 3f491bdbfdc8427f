"""How long a trade takes to its candle: a feed, the ingester, and the continuous transform.

    .venv/bin/python benchmarks/latency.py

An exchange of its own sends trades that happen now, at an even rate. A trade has arrived when the
candle of its minute, as a BI tool reads it, has its id. All of it runs on this machine, with a new
embedded server in a temporary folder.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from warehouse.embedded import EmbeddedServer
from warehouse.migrate import migrate
from warehouse.settings import Role, WarehouseSettings

PRODUCTS: Final = [f"COIN{number}-USD" for number in range(10)]
TICK_SECONDS: Final = 0.01
POLL_SECONDS: Final = 0.05
# Until both processes are up, and the tables there.
WARM_UP_SECONDS: Final = 30
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


async def measure(settings: WarehouseSettings, rate: float, every: str, seconds: float) -> None:
    """Let the trades of so many seconds arrive, and tell how long they took."""
    feed = Feed(rate)
    server = await feed.open()
    port = server.sockets[0].getsockname()[1]
    environment = {
        "COINBASE_WS_URL": f"ws://127.0.0.1:{port}",
        "COINBASE_PRODUCTS": ",".join(PRODUCTS),
        "SPOOL_DIR": str(settings.medallion_home / "spool"),
    }
    latencies: list[float] = []
    with running("transform", "--every", every), running("ingest", **environment):
        await asyncio.sleep(WARM_UP_SECONDS)
        # What happened before is no part of it: it waited for the start.
        since = time.time()
        until = since + seconds
        reader = await settings.connection(Role.READER).connect()
        # To the last: those that are quick would else count for more.
        while waiting_before(feed, until):
            for product_id, trade_id in await reader.fetch(
                ARRIVED, datetime.fromtimestamp(since - WARM_UP_SECONDS - 60, UTC)
            ):
                now, waiting = time.time(), feed.sent[product_id]
                while waiting and waiting[0][0] <= trade_id:
                    happened_at = waiting.popleft()[1]
                    if since <= happened_at < until:
                        latencies.append(now - happened_at)
            await asyncio.sleep(POLL_SECONDS)
        await reader.close()
    server.close()
    tell(latencies, rate, every, seconds)


def waiting_before(feed: Feed, until: float) -> bool:
    """Tell whether trades that happened before a time have not arrived, or may still happen."""
    return time.time() < until or any(
        waiting and waiting[0][1] < until for waiting in feed.sent.values()
    )


def tell(latencies: list[float], rate: float, every: str, seconds: float) -> None:
    """Print a row of the table in docs/performance.md."""
    latencies.sort()
    quantiles = {f"{q:.0%}": latencies[int(q * (len(latencies) - 1))] for q in (0.5, 0.95, 0.99)}
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    print(
        f"| {rate:g} | {every} | {len(latencies):,} in {seconds:g} s | "
        + " | ".join(f"{value:.1f} s" for value in quantiles.values())
        + f" | {latencies[-1]:.1f} s | {load:.1f} |"
    )


@contextmanager
def running(*command: str, **environment: str) -> Iterator[None]:
    """Run a command of medallion while the context lasts."""
    with subprocess.Popen(
        [sys.executable, "-m", "medallion", *command],
        env={**os.environ, **environment},
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            yield
            if process.poll() is not None:
                sys.exit(f"medallion {' '.join(command)} ended with {process.returncode}.")
        finally:
            process.terminate()


def main() -> None:
    """Measure once."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--rate", type=float, default=500, help="trades per second")
    parser.add_argument("--every", default="5s", help="as of medallion transform")
    parser.add_argument("--seconds", type=float, default=120, help="how long to measure")
    chosen = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="medallion-"))
    os.environ["MEDALLION_HOME"] = str(home)
    settings = WarehouseSettings()
    embedded = EmbeddedServer.of(settings)
    embedded.start()
    try:
        asyncio.run(migrate(settings))
        asyncio.run(measure(settings, chosen.rate, chosen.every, chosen.seconds))
    finally:
        embedded.stop()
        shutil.rmtree(home)


if __name__ == "__main__":
    main()
