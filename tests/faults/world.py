"""The world that a fault happens in: exchange, ingester, PostgreSQL and dbt, all of it real."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ingestion.capture import Capture
from ingestion.settings import IngestionSettings
from simulator.exchange import Exchange, ExchangeConfig
from simulator.market import PRODUCTS
from simulator.server import Offered
from tests.conftest import Server
from tests.integration.test_ingestion_capture import close_database, open_database
from warehouse.settings import WarehouseError

if TYPE_CHECKING:
    from tests.dbt.conftest import Lakehouse

LEAST_RATE = 2_000
"""Trades a second that the exchange offers at the least while a fault happens."""
WANTED = ("BTC-USD", "ETH-USD", "SOL-USD")
# Long enough ago for hours of market to pass in a test, at the hour at which trading gets busy.
START = datetime.now(UTC).replace(hour=5, minute=0, second=0, microsecond=0) - timedelta(days=10)

QUICK = {
    "ingestion.capture.GAP_GRACE_SECONDS": 0.5,
    "ingestion.bookkeeping.CHECK_SECONDS": 0.2,
    "ingestion.bookkeeping.COVER_SECONDS": 0.5,
    "ingestion.bronze.LONGEST_RETRY_SECONDS": 1.0,
    "ingestion.coinbase.feed.LONGEST_RETRY_SECONDS": 0.5,
    "ingestion.coinbase.rest.LONGEST_RETRY_SECONDS": 0.5,
    "ingestion.coinbase.rest.TIMEOUT_SECONDS": 0.5,
    "ingestion.repair.LOOK_SECONDS": 0.5,
    "ingestion.repair.LONGEST_RETRY_SECONDS": 0.5,
}
"""What the short version waits for, in place of the real constants."""

LAUNCHER = """
from importlib import import_module
for name, value in {constants}.items():
    module, _, constant = name.rpartition(".")
    setattr(import_module(module), constant, value)
from medallion.cli import main
main()
"""

# Malformed frames have ids, too, but each comes after the trade that it was made of.
HELD = """
    select count(distinct payload -> 'trade_id')
    from bronze.coinbase_trades_raw
    where
        product_id = $1
        and payload -> 'trade_id' between to_jsonb($2::bigint) and to_jsonb($3::bigint)
"""

SILVER = "select product_id, trade_id, price, size, side, trade_time from silver.coinbase_trades"

# Each row of bronze is one trade here; those that are neither in silver nor quarantined came twice.
DUPLICATES = """
    select
        (select count(*) from bronze.coinbase_trades_raw)
        - (select count(*) from silver.coinbase_trades)
        - (select count(*) from silver.coinbase_trades_quarantine)
"""

Row = tuple[str, int, Decimal, Decimal, str, datetime]


@dataclass(frozen=True)
class Figures:
    """How much there is of each fault; times in seconds."""

    speed: int
    """Market seconds per second. The rate of trades is the same at each."""
    stream: float
    """How long trades flow before a fault."""
    silence: float
    """After which the ingester takes a connection for dead."""
    outage: float
    """How long PostgreSQL is stopped."""
    closed: float
    """How long the database refuses connections."""
    memory: int
    """Frames that the ingester may hold meanwhile, fewer than there come."""
    lock: float
    """How long bronze is locked."""
    kills: int
    """Of the ingester."""
    life: float
    """The longest that it lives before each."""
    dbt_kills: int
    constants: dict[str, float]
    """Of the product, that are other than they are."""
    patience: float
    """How long anything may take."""


SHORT = Figures(
    speed=1200,
    stream=1.0,
    silence=1.2,
    outage=2.0,
    closed=2.0,
    memory=2_000,
    lock=2.0,
    kills=3,
    life=3.0,
    dbt_kills=1,
    constants=QUICK,
    patience=40.0,
)
LONG = Figures(
    speed=120,
    stream=10.0,
    silence=10.0,
    outage=10.0,
    closed=60.0,
    memory=50_000,
    lock=30.0,
    kills=10,
    life=5.0,
    dbt_kills=5,
    constants={},
    patience=240.0,
)


@dataclass(frozen=True)
class Outcome:
    """What became of the trades of one fault."""

    fault: str
    rate: int
    offered: int
    in_silver: int
    missing: int
    duplicates: int
    seconds: float


class World:
    """Streams the trades of a market into a lakehouse, and waits for what is to come."""

    def __init__(
        self, figures: Figures, server: Server, lakehouse: Lakehouse, folder: Path
    ) -> None:
        self.figures = figures
        self.lakehouse = lakehouse
        self.database = lakehouse.database
        self.exchange: Exchange
        self.rate = 0.0
        self.seconds = 0.0
        self._embedded = server.embedded
        self._log = folder / "ingester.log"
        self._began: tuple[float, int] | None = None

    # The exchange and the ingester.

    @asynccontextmanager
    async def market(self, **changes: Any) -> AsyncIterator[Exchange]:
        """Open an exchange, on which trading goes on until `recovers` has seen all of it saved."""
        speed = self.figures.speed
        products = tuple(
            replace(product, trades_per_day=product.trades_per_day * SHORT.speed // speed)
            for product in map(PRODUCTS.__getitem__, WANTED)
        )
        config = ExchangeConfig(start=START, speed=speed, products=products)
        async with Exchange(replace(config, **changes)) as self.exchange:
            yield self.exchange

    @asynccontextmanager
    async def capturing(self, **changes: Any) -> AsyncIterator[Capture]:
        """Record in this process."""
        values = {
            "coinbase_ws_url": self.exchange.ws_url,
            "coinbase_products": WANTED,
            "silence_seconds": self.figures.silence,
            **changes,
        }
        capture = Capture(
            IngestionSettings(_env_file=None, **values),
            self.database.info("medallion_ingest").open,
        )
        run = asyncio.create_task(capture.run())
        try:
            yield capture
        finally:
            capture.stop()
            await run

    @asynccontextmanager
    async def ingester(self, **variables: str) -> AsyncIterator[asyncio.subprocess.Process]:
        """Record in a process of its own, which is killed in the end if it still runs."""
        ours = {
            "COINBASE_WS_URL": self.exchange.ws_url,
            "COINBASE_PRODUCTS": ",".join(WANTED),
            "SILENCE_SECONDS": str(self.figures.silence),
            **self.database.environment(),
            **variables,
        }
        kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        with self._log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", LAUNCHER.format(constants=self.figures.constants)),
                "ingest",
                env={**kept, **ours},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def stop(self, process: asyncio.subprocess.Process) -> None:
        """Stop an ingester as its user does, and see that it ends well."""
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0, self.said()

    def said(self) -> str:
        """Return what the ingesters have logged."""
        return self._log.read_text()

    # PostgreSQL.

    async def stop_postgres(self) -> None:
        """Stop the server fast."""
        await asyncio.to_thread(self._embedded.stop)

    async def kill_postgres(self) -> None:
        """Kill the server with SIGKILL."""
        pid = int((self._embedded.data / "postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGKILL)

    async def start_postgres(self) -> None:
        """Start the server, once nothing of a killed one is left."""
        until = time.monotonic() + self.figures.patience
        while True:
            try:
                await asyncio.to_thread(self._embedded.start)
            except WarehouseError:
                # The processes of a killed server end when they notice.
                if time.monotonic() > until:
                    raise
                await asyncio.sleep(0.2)
            else:
                return

    @asynccontextmanager
    async def closed_database(self) -> AsyncIterator[None]:
        """Refuse all connections to the database."""
        info = replace(self.database.info("admin"), database="postgres")
        admin = await info.open()
        try:
            await close_database(admin, self.database)
            yield
            await open_database(admin, self.database)
        finally:
            await admin.close()

    @asynccontextmanager
    async def locked_bronze(self) -> AsyncIterator[None]:
        """Let nobody read or write bronze."""
        admin = await self.database.connect("admin")
        try:
            async with admin.transaction():
                await admin.execute("lock table bronze.coinbase_trades_raw")
                yield
        finally:
            await admin.close()

    async def fetch(self, query: str, *arguments: Any) -> list[Any]:
        return await asyncio.to_thread(self.database.fetch, query, *arguments)

    # Time.

    async def wait_for(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(self.figures.patience):
            while not condition():  # noqa: ASYNC110  (of several kinds)
                await asyncio.sleep(0.02)

    async def wait_for_rows(self, query: str, *arguments: Any, rows: int = 1) -> None:
        async with asyncio.timeout(self.figures.patience):
            while len(await self.fetch(query, *arguments)) < rows:  # noqa: ASYNC110  (others write them)
                await asyncio.sleep(0.05)

    async def flows(self, seconds: float | None = None) -> None:
        """Let trades of all products flow for some time; the first ones have reached bronze."""
        if self._began is None:
            recorded = "select distinct product_id from bronze.coinbase_trades_raw"
            await self.wait_for_rows(recorded, rows=len(WANTED))
            self._began = time.monotonic(), self._offered_trades()
        await asyncio.sleep(self.figures.stream if seconds is None else seconds)

    async def reconnects(self) -> None:
        """Wait for the end of a fault that ended the connections: a new one is subscribed."""
        await self.wait_for(lambda: self.exchange.feed.wanted("matches"))

    async def sees_dbt(self, since: datetime) -> None:
        """Wait until a build that began since has begun to work on the database."""
        await self.wait_for_rows(
            "select from pg_stat_activity "
            "where application_name = 'medallion_dbt' and backend_start > $1",
            since,
        )

    async def recovers(self) -> None:
        """From the end of a fault on, wait until bronze holds all; then close the market."""
        ended = time.monotonic()
        assert self._began is not None
        began, offered_before = self._began
        self.rate = (self._offered_trades() - offered_before) / (ended - began)
        await self._holds(self.exchange.status().trades)
        self.seconds = time.monotonic() - ended
        self.exchange.end = self.exchange.market_time
        await self.wait_for(lambda: self.exchange.finished)
        await self._holds(self.exchange.status().trades)

    async def _holds(self, offered: Mapping[str, Offered]) -> None:
        """Wait until bronze holds these trades."""
        lacking = {product_id: told.count for product_id, told in offered.items()}
        try:
            async with asyncio.timeout(self.figures.patience):
                while lacking:
                    await asyncio.sleep(0.05)
                    for product_id in tuple(lacking):
                        told = offered[product_id]
                        [[held]] = await self.fetch(HELD, product_id, told.first_id, told.last_id)
                        lacking[product_id] = told.count - held
                        if held == told.count:
                            del lacking[product_id]
        except TimeoutError:
            gaps = await self.fetch("select * from bronze.trade_gaps where status <> 'repaired'")
            coverage = await self.fetch("select * from bronze.trade_coverage")
            raise AssertionError(
                f"bronze lacks so many trades, and gets no more: {lacking} of {offered}; "
                f"gaps {gaps}; coverage {coverage}"
            ) from None

    def _offered_trades(self) -> int:
        return sum(told.count for told in self.exchange.status().trades.values())

    # The ending.

    def build_silver(self) -> None:
        """Build silver and see that it accounts for every row of bronze."""
        only = ("--select", "staging", "silver", "--exclude-resource-type", "unit_test")
        self.lakehouse.build(*only, "--indirect-selection", "cautious")

    def listed(self) -> list[Row]:
        """Return the exchange's own list of what it offered."""
        offered = self.exchange.status().trades
        assert set(offered) == set(WANTED)
        trades = chain.from_iterable(
            self.exchange.trades(product_id, told.first_id, told.last_id)
            for product_id, told in offered.items()
        )
        return [
            (
                trade["product_id"],
                trade["trade_id"],
                Decimal(trade["price"]),
                Decimal(trade["size"]),
                trade["side"],
                datetime.fromisoformat(trade["time"]),
            )
            for trade in trades
        ]

    def in_silver(self) -> list[Row]:
        """Return what silver holds."""
        return [tuple(row) for row in self.database.fetch(SILVER)]


def compared(world: World, fault: str) -> Outcome:
    """Compare silver with the exchange's list: every value of every trade, none more or fewer."""
    listed, silver = world.listed(), world.in_silver()
    [(duplicates,)] = world.database.fetch(DUPLICATES)
    missing = set(listed) - set(silver)
    assert not missing, f"{len(missing)} of {len(listed)} trades are not in silver: {min(missing)}"
    assert sorted(silver) == sorted(listed)
    assert world.rate >= LEAST_RATE
    return Outcome(
        fault=fault,
        rate=round(world.rate),
        offered=len(listed),
        in_silver=len(silver),
        missing=len(missing),
        duplicates=duplicates,
        seconds=world.seconds,
    )
