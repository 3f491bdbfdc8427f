"""What one process takes from the socket to committed bronze rows, and what it costs.

    .venv/bin/python -m benchmarks.ingest [--full]

In each round, one after the other: `medallion ingest` as it is; the plain loop, which receives
frames and COPYs them to the same table, and does nothing else; the reference's ingester, where one
is given; and `websockets` receiving alone. A feed in a process of its own sends as fast as each
reads.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, closing, contextmanager
from ctypes import c_longlong
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import count
from typing import Any, Final, TypeAlias
from uuid import UUID

import psycopg2
from websockets.asyncio.client import ClientConnection, connect

from benchmarks.exchange import FIRST_ID, Exchange
from benchmarks.measure import (
    cpu_seconds,
    environment,
    interleaved,
    load,
    machine,
    middle,
    options,
    postgres_pid,
    resident_bytes,
    running,
    table,
    tell,
    warehouse,
)
from benchmarks.reference import ABSENT, Reference, given
from ingestion.bronze import TRADE_COLUMNS, TradeRow, open_bronze
from ingestion.coinbase.connection import MAX_WAITING_FRAMES
from ingestion.coinbase.wire import subscribe
from warehouse.settings import ConnectionInfo, Role, WarehouseSettings

BATCH: Final = 5_000
"""Rows per COPY of the plain loop: as many as the ingester's."""
PRODUCTS_PER_CONNECTION: Final = 50
OURS: Final = "`medallion ingest`"
LEAST_TRADES: Final = 10_000
"""However short: CPU is told in steps of 10 ms."""
POLL_SECONDS: Final = 0.05
PATIENCE_SECONDS: Final = 60
_SPAWN: Final = multiprocessing.get_context("spawn")
_SERIALS: Final = count()

Rows: TypeAlias = Callable[[], int]
"""Tells how many trades have come so far."""


@dataclass(frozen=True)
class Sizes:
    """How long and how much is measured."""

    rounds: int
    warm_up: float
    """Seconds that do not count, after the first frame."""
    seconds: float
    """Seconds that do, for each client in each round."""
    memory_from: int
    """Trades after which memory is read first."""
    memory_to: int
    """Trades after which it is read last."""


SHORT: Final = Sizes(rounds=3, warm_up=1, seconds=4, memory_from=100_000, memory_to=500_000)
FULL: Final = Sizes(rounds=9, warm_up=2, seconds=15, memory_from=1_000_000, memory_to=10_000_000)


@dataclass(frozen=True)
class Measured:
    """What one client took in one round."""

    trades_per_second: float
    client_cpu: float
    """CPU seconds of the client per 100,000 trades."""
    server_cpu: float
    """CPU seconds of PostgreSQL per 100,000 trades."""

    def __str__(self) -> str:
        return f"{self.trades_per_second:,.0f} trades/s at {self.client_cpu:.2f} CPU s"


@dataclass(frozen=True)
class Client:
    """One that reads the feed.

    Args:
        start: runs it at an address, for some products, and lends its process id.
        counted: lends what counts the trades that come in the context.

    """

    start: Callable[[str, Sequence[str]], AbstractContextManager[int]]
    counted: Callable[[], AbstractContextManager[Rows]]


def measure(client: Client, products: Sequence[str], sizes: Sizes, postgres: int) -> Measured:
    """Let a client read for some seconds."""

    def look() -> tuple[int, float, float, float]:
        return rows(), time.monotonic(), cpu_seconds(pid), cpu_seconds(postgres)

    with (
        client.counted() as rows,
        Exchange() as exchange,
        client.start(exchange.url, products) as pid,
    ):
        exchange.begin(len(_parts(products)))
        wait_for(rows, 1)
        time.sleep(sizes.warm_up)
        before = look()
        time.sleep(sizes.seconds)
        wait_for(rows, before[0] + LEAST_TRADES)
        trades, seconds, own, server = (b - a for a, b in zip(before, look(), strict=True))
    return Measured(trades / seconds, own / trades * 100_000, server / trades * 100_000)


def wait_for(rows: Rows, trades: int) -> None:
    """Wait until so many trades have come, as long as some come."""
    came, since = -1, 0.0
    while (now := rows()) < trades:
        if now > came:
            came, since = now, time.monotonic()
        elif time.monotonic() - since > PATIENCE_SECONDS:
            raise SystemExit(f"After {came:,} trades none came for {PATIENCE_SECONDS} s.")
        time.sleep(POLL_SECONDS)


@contextmanager
def counted_in(info: ConnectionInfo, key: str) -> Iterator[Rows]:
    """Count what is written to a bronze table; check that no trade lacks or is twice; empty it.

    Counted by its sequence, for that costs nothing: a batch on its way counts in part.
    """
    last = (
        "select coalesce(pg_sequence_last_value("
        f"pg_get_serial_sequence('bronze.coinbase_trades_raw', '{key}')::regclass), 0)"
    )
    check = f"""
        with trades as (
            select payload ->> 'product_id' as product_id, (payload ->> 'trade_id')::bigint as id
            from bronze.coinbase_trades_raw
            where {key} > %s
        ),

        products as (
            select count(*) as trades, max(id) - {FIRST_ID} + 1 as ids
            from trades
            group by product_id
        )

        select coalesce(sum(trades), 0), coalesce(sum(abs(ids - trades)), 0) from products
    """  # noqa: S608
    with closing(psycopg2.connect(info.url())) as connection, connection.cursor() as cursor:
        connection.autocommit = True

        def asked(query: str, *arguments: int) -> tuple[int, ...]:
            cursor.execute(query, arguments)
            (row,) = cursor.fetchall()
            return row

        (before,) = asked(last)
        yield lambda: asked(last)[0] - before
        (after,), (stored, wrong) = asked(last), asked(check, before)
        if wrong or stored < after - before - BATCH:
            raise SystemExit(f"Of {after - before:,} trades {stored:,} are there, {wrong:,} wrong.")
        # Past the triggers that keep bronze append-only: all rounds together would fill the disk.
        cursor.execute("set session_replication_role to replica")
        cursor.execute("truncate bronze.coinbase_trades_raw")


def ingester(settings: WarehouseSettings) -> Client:
    """Return `medallion ingest` as it is."""

    @contextmanager
    def start(url: str, products: Sequence[str]) -> Iterator[int]:
        variables = environment(settings) | {
            "COINBASE_FEED": "exchange",
            "COINBASE_WS_URL": url,
            "COINBASE_PRODUCTS": ",".join(products),
        }
        with running([sys.executable, "-m", "medallion", "ingest"], **variables) as process:
            yield process.pid

    return Client(start, lambda: counted_in(settings.connection(Role.ADMIN), "bronze_id"))


def reference(checkout: Reference) -> Client:
    """Return the reference's ingester as it is."""

    @contextmanager
    def start(url: str, products: Sequence[str]) -> Iterator[int]:
        variables = checkout.info.environment() | {
            "COINBASE_WS_URL": url,
            "COINBASE_PRODUCTS": ",".join(products),
        }
        with running(checkout.ingester, **variables) as process:
            yield process.pid

    return Client(start, lambda: counted_in(checkout.info, "id"))


def plain_loop(settings: WarehouseSettings) -> Client:
    """Return a client that receives frames and COPYs them to bronze, and does nothing else."""
    info = settings.connection(Role.INGEST)

    def start(url: str, products: Sequence[str]) -> AbstractContextManager[int]:
        return _process(_receive_and_copy, url, products, info)

    return Client(start, lambda: counted_in(settings.connection(Role.ADMIN), "bronze_id"))


def receiver() -> Client:
    """Return a client that receives frames and drops them."""
    received = _SPAWN.Value("q", lock=False)

    @contextmanager
    def counted() -> Iterator[Rows]:
        received.value = 0
        yield lambda: received.value

    return Client(lambda url, products: _process(_receive, url, products, received), counted)


@contextmanager
def _process(target: Callable[..., Coroutine[Any, Any, None]], *args: object) -> Iterator[int]:
    process = _SPAWN.Process(target=_run, args=(target, *args), daemon=True)
    process.start()
    try:
        yield process.pid or 0
        if not process.is_alive():
            raise SystemExit(f"{target.__name__} ended with {process.exitcode}; it said why above.")
    finally:
        process.kill()
        process.join()


def _run(target: Callable[..., Coroutine[Any, Any, None]], *args: object) -> None:
    asyncio.run(target(*args))


async def _receive(url: str, products: Sequence[str], received: c_longlong) -> None:
    async def read(part: Sequence[str]) -> None:
        async with _subscribed(url, part) as websocket:
            while True:
                await websocket.recv(decode=False)
                received.value += 1

    await asyncio.gather(*map(read, _parts(products)))


async def _receive_and_copy(url: str, products: Sequence[str], info: ConnectionInfo) -> None:
    """COPY each full batch while the next one is received."""
    database = await open_bronze(info.open)
    rows: list[TradeRow] = []
    now, session = datetime.now(UTC), UUID(int=1)
    copying = asyncio.Lock()

    async def copy(batch: list[TradeRow]) -> None:
        try:
            await database.copy_records_to_table(
                "coinbase_trades_raw", schema_name="bronze", columns=TRADE_COLUMNS, records=batch
            )
        finally:
            copying.release()

    async def read(part: Sequence[str]) -> None:
        nonlocal rows, now
        async with _subscribed(url, part) as websocket:
            while True:
                frame = await websocket.recv(decode=False)
                rows.append((now, "exchange_ws", "matches", session, None, frame))
                if len(rows) == BATCH:
                    batch, rows, now = rows, [], datetime.now(UTC)
                    await copying.acquire()
                    tasks.create_task(copy(batch))

    async with asyncio.TaskGroup() as tasks:
        for part in _parts(products):
            tasks.create_task(read(part))


@asynccontextmanager
async def _subscribed(url: str, products: Sequence[str]) -> AsyncIterator[ClientConnection]:
    """Connect as the ingester does."""
    async with connect(
        url, compression=None, max_queue=MAX_WAITING_FRAMES, ping_interval=None
    ) as websocket:
        await websocket.send(subscribe(products))
        await websocket.recv()
        yield websocket


def _products(number: int) -> list[str]:
    """Return so many products that nobody has read so far: what is known of them would count."""
    serial = next(_SERIALS)
    return [f"S{serial}N{product}-USD" for product in range(number)]


def _parts(products: Sequence[str]) -> list[Sequence[str]]:
    """Return products as they are spread over connections."""
    size = PRODUCTS_PER_CONNECTION
    return [products[at : at + size] for at in range(0, len(products), size)]


def memory(settings: WarehouseSettings, sizes: Sizes) -> str:
    """Tell what the ingester holds in memory after few trades and after many."""
    client = ingester(settings)
    products = _products(PRODUCTS_PER_CONNECTION)
    with (
        client.counted() as rows,
        Exchange() as exchange,
        client.start(exchange.url, products) as pid,
    ):
        exchange.begin(1)
        held = []
        for trades in (sizes.memory_from, sizes.memory_to):
            wait_for(rows, trades)
            held.append(resident_bytes(pid))
            tell(f"{trades:,} trades, {held[-1] / 2**20:,.0f} MiB")
    before, after = held
    return (
        f"Memory of {OURS} (RSS) after {sizes.memory_from:,} trades: {before / 2**20:.0f} MiB; "
        f"after {sizes.memory_to:,}: {after / 2**20:.0f} MiB ({after / before - 1:+.1%})."
    )


def section(settings: WarehouseSettings, sizes: Sizes, checkout: Reference | None) -> str:
    """Measure all of it, and return what docs/performance.md says of it."""
    load_before, postgres = load(), postgres_pid(settings)
    ours, plain = {OURS: ingester(settings)}, {"plain loop": plain_loop(settings)}
    others = {"reference": reference(checkout)} if checkout else {}
    one, many = PRODUCTS_PER_CONNECTION, 10 * PRODUCTS_PER_CONNECTION
    all_clients = ours | plain | others | {"receiving alone": receiver()}
    parts = [
        compared(all_clients, one, sizes, postgres),
        compared(ours | plain, many, sizes, postgres),
        memory(settings, sizes),
        f"{sizes.rounds} rounds of {sizes.seconds:g} s each; median, and the least and the most. "
        + machine(settings, load_before),
    ]
    if not checkout:
        parts.append(ABSENT)
    return "\n\n".join(parts)


def compared(clients: Mapping[str, Client], products: int, sizes: Sizes, postgres: int) -> str:
    """Return the table of clients that read so many products; the others stand behind ours."""

    def measured_once(client: Client) -> Measured:
        return measure(client, _products(products), sizes, postgres)

    measured = interleaved(
        sizes.rounds, {name: partial(measured_once, client) for name, client in clients.items()}
    )
    ours, *_ = measured.values()
    rows = []
    for name, theirs in measured.items():
        row = [
            name,
            middle([its.trades_per_second for its in theirs]),
            middle([its.client_cpu for its in theirs], ".2f"),
            middle([its.server_cpu for its in theirs], ".2f"),
        ]
        pairs = list(zip(ours, theirs, strict=True))
        faster = [our.trades_per_second / its.trades_per_second for our, its in pairs]
        dearer = [our.client_cpu / its.client_cpu for our, its in pairs]
        row += ["", ""] if theirs is ours else [middle(faster, ".2f"), middle(dearer, ".2f")]
        rows.append(row)
    columns = [
        f"{products} products, connections: {len(_parts(_products(products)))}",
        "trades/s",
        "its CPU s per 100,000",
        "PostgreSQL's",
        "our trades/s : its",
        "our CPU : its",
    ]
    return table(columns, rows)


def main() -> None:
    """Measure on a server of its own."""
    sizes = FULL if options(__doc__).parse_args().full else SHORT
    with warehouse() as settings:
        print(section(settings, sizes, given(settings)))


if __name__ == "__main__":
    main()
