"""Everything once, on one machine: an exchange, the ingester, dbt, and what came of it."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from ingestion.capture import Capture, stop_on_signals
from ingestion.catalogue import fetch_catalogue
from ingestion.coinbase.rest import RestClient, RestRefusedError
from ingestion.metrics import CaptureStats
from ingestion.settings import IngestionSettings
from medallion import dbt
from medallion.errors import FailedError
from medallion.logs import log_to
from medallion.market import refuse_another_market
from medallion.progress import TimeColumn
from medallion.report import show_report
from simulator.market import DEFAULT_PRODUCT_IDS, Market, micros
from simulator.recording import Recording
from warehouse.embedded import EmbeddedServer
from warehouse.migrate import migrate
from warehouse.settings import PROJECT_ROOT, Role, WarehouseError, WarehouseSettings

LIVE = "wss://ws-feed.exchange.coinbase.com"
SIMULATED_DAY = timedelta(days=1)
SEED = 0
FAULTS = {"duplicates": 0.005, "late": 0.005, "dropped": 0.0005, "malformed": 0.0005}
QUIET_SECONDS = 3
REPAIR_SECONDS = 30
LIVE_PATIENCE_SECONDS = 15


class DemoError(WarehouseError):
    """The demo can't go on; the message says what to do."""


@dataclass(frozen=True)
class Feed:
    """What the demo listens to.

    `trades` is how many are expected, None where nobody knows. `status_url` tells when a simulated
    feed has sent everything; None for the live one.
    """

    url: str
    products: tuple[str, ...]
    trades: int | None
    status_url: str | None


class Demo:
    """The whole way of a trade, shown on a terminal.

    Args:
        settings: the database.
        console: where it is shown.
        source: `simulator`, `live`, or a file of recorded frames.
        products: what to record; by default ten simulated ones, those of the file, or those of
            COINBASE_PRODUCTS.
        seconds: how long to listen to the live market.

    """

    def __init__(
        self,
        settings: WarehouseSettings,
        console: Console,
        source: str,
        products: tuple[str, ...] | None,
        seconds: float,
    ) -> None:
        self._settings = settings
        self._console = console
        self._source = source
        self._products = products
        self._seconds = seconds
        self._recording: Recording | None = None
        self._log_file = settings.medallion_home / "demo.log"

    def run(self) -> None:
        """Run it.

        Raises:
            WarehouseError: something is in the way; the message says what to do.
            FailedError: the feed does not answer, or dbt failed.
            IngestionError: the feed or bronze failed for good.

        """
        began = time.monotonic()
        self._recording = self._load_recording()
        self._prepare()
        asyncio.run(self._stream())
        with self._progress() as progress:
            task = progress.add_task("dbt build", total=None, told="")

            def advance(done: float, total: float) -> None:
                progress.update(task, total=total, completed=done, told=f"{done}/{total}")

            failures = dbt.build(self._settings.connection(Role.TRANSFORM), advance)
        asyncio.run(show_report(self._console, self._settings))
        self._console.print(f"\nAll of it took {time.monotonic() - began:.0f} s.")
        if failures:
            raise FailedError("dbt build failed:\n" + "\n".join(failures))

    def _load_recording(self) -> Recording | None:
        if self._source in {"simulator", "live"}:
            return None
        try:
            return Recording.load(Path(self._source))
        except ValueError as error:
            raise DemoError(str(error)) from None

    def _prepare(self) -> None:
        with self._console.status("Starting PostgreSQL") as status:
            if self._settings.embedded:
                EmbeddedServer.of(self._settings).start()
            status.update("Migrating the database")
            asyncio.run(migrate(self._settings))
            connection = self._settings.connection(Role.INGEST)
            asyncio.run(refuse_another_market(connection, self._url_of_source()))
            if not dbt.packages_are_installed():
                status.update("Installing dbt's packages")
                dbt.deps()
        connection = self._settings.connection(Role.READER)
        self._console.print(
            f"PostgreSQL  {connection.host}:{connection.port}, database {connection.database}"
        )

    def _url_of_source(self) -> str:
        if self._source == "live":
            return LIVE
        path = self._recording.url_path if self._recording else "/"
        return f"ws://127.0.0.1{path}"

    async def _stream(self) -> None:
        async with self._feed() as feed:
            settings = IngestionSettings(
                coinbase_ws_url=feed.url,
                coinbase_products=feed.products,
                # Not what the environment says: that may lead to another market.
                coinbase_feed="exchange",
                coinbase_rest_url=None,
                metrics_port=None,
                spool_dir=self._settings.medallion_home / "demo-spool",
            ).with_spool_of(self._settings.pgdatabase)
            capture = Capture(settings, self._settings.connection(Role.INGEST).open)
            self._console.print(f"Feed        {feed.url}, {', '.join(feed.products)}")
            with self._log(), self._progress() as progress, stop_on_signals(capture.stop):
                watching = asyncio.create_task(self._watch(capture, feed, progress))
                try:
                    stats = await capture.run()
                finally:
                    watching.cancel()
                    await asyncio.wait({watching})
                if not watching.cancelled():
                    watching.result()
                # A recording has no REST side.
                products = None if self._recording else await self._fetch_products(settings)
            self._console.print(
                f"Bronze      {stats.trades:,} trades received, {stats.rows:,} rows committed, "
                f"{stats.rejected:,} frames that jsonb can't hold set aside"
            )
            if stats.repaired:
                told = f"{stats.repaired:,} trades that the feed left out, fetched over REST"
                self._console.print(f"Gaps        {told}")
            if products:
                self._console.print(f"Products    {products}")

    async def _fetch_products(self, settings: IngestionSettings) -> str:
        """Fetch the catalogue while the exchange is there, and say what came of it."""
        connection = await self._settings.connection(Role.INGEST).connect()
        try:
            async with (
                asyncio.timeout(LIVE_PATIENCE_SECONDS),
                RestClient(settings.rest_url) as rest,
            ):
                fetched = await fetch_catalogue(rest, connection)
        except (TimeoutError, RestRefusedError) as error:
            return f"not fetched: {str(error) or 'the exchange does not answer over REST'}"
        finally:
            await connection.close()
        return f"{fetched.products:,} in the exchange's catalogue"

    async def _watch(self, capture: Capture, feed: Feed, progress: Progress) -> None:
        """Show how it goes, and stop the capture when the feed has nothing more to give."""
        task = progress.add_task("streaming", total=feed.trades or self._seconds, told="")
        began = time.monotonic()
        seconds = 0.0
        streamed_for = None

        def show() -> float:
            stats, seconds = capture.stats, streamed_for or time.monotonic() - began
            told = (
                f"{stats.trades:,} trades, {stats.trades / seconds:,.0f}/s, "
                f"{stats.rows:,} rows in bronze"
            )
            stored = stats.rows + stats.repaired
            progress.update(task, completed=stored if feed.trades else seconds, told=told)
            return seconds

        try:
            if feed.status_url is None:
                while seconds < self._seconds:
                    await asyncio.sleep(0.25)
                    seconds = show()
                    if seconds > LIVE_PATIENCE_SECONDS and not capture.stats.frames:
                        raise FailedError(
                            f"Nothing came from {feed.url} in {LIVE_PATIENCE_SECONDS} s "
                            f"({self._why_disconnected()}). Without a way to the internet, "
                            "`medallion demo` shows the same on a simulated exchange."
                        )
            else:
                async with httpx.AsyncClient() as client:
                    while not await self._is_complete(capture, feed.status_url, client):
                        await asyncio.sleep(0.25)
                        show()
                streamed_for = show()
                progress.stop_task(task)
                await self._watch_repair(capture, progress)
        finally:
            capture.stop()
        try:
            while True:
                show()
                await asyncio.sleep(0.25)
        finally:
            show()

    @staticmethod
    async def _watch_repair(capture: Capture, progress: Progress) -> None:
        """Show how the trades that the feed left out are found and fetched."""
        task = progress.add_task("repairing", total=None, told="")
        until = time.monotonic() + REPAIR_SECONDS
        while (missing := sum(capture.missing_trades().values())) and time.monotonic() < until:
            progress.update(task, told=f"{missing:,} trades that the feed left out")
            await asyncio.sleep(0.25)
        told = f"{missing:,} trades missing" if missing else "nothing is missing"
        progress.update(task, total=1, completed=1, told=told)

    @staticmethod
    async def _is_complete(capture: Capture, status_url: str, client: httpx.AsyncClient) -> bool:
        """Tell whether everything that the simulated feed had to give has arrived."""
        sent = (await client.get(status_url)).json()
        if not sent["finished"]:
            return False
        due = sent["frames_sent"] + sent["last_matches"]
        before = _market_frames(capture.stats)
        if before >= due:
            return True
        # A connection that broke on the way leaves a rest that never comes.
        await asyncio.sleep(QUIET_SECONDS)
        return _market_frames(capture.stats) == before

    @contextmanager
    def _log(self) -> Iterator[None]:
        """Send log events to a file meanwhile: on the terminal they would break the display."""
        self._log_file.parent.mkdir(parents=True, exist_ok=True)
        with self._log_file.open("w") as file:
            log_to(file)
            try:
                yield
            finally:
                log_to(sys.stderr)

    def _why_disconnected(self) -> str:
        events = map(json.loads, self._log_file.read_text().splitlines())
        reasons = [event["reason"] for event in events if event["event"] == "disconnected"]
        return reasons[-1] if reasons else "no answer"

    @asynccontextmanager
    async def _feed(self) -> AsyncIterator[Feed]:
        if self._source == "live":
            yield Feed(LIVE, self._products or IngestionSettings().coinbase_products, None, None)
            return
        if self._recording:
            products = self._chosen_of(self._recording.products)
            arguments = ["--recording", self._source]
            trades = sum(frame.trade_id is not None for frame in self._recording.frames)
            path = self._recording.url_path
        else:
            market = Market(SEED)
            products = self._chosen_of(DEFAULT_PRODUCT_IDS, tuple(market.products))
            now = datetime.now(UTC)
            start = await self._newest_candle() or now - SIMULATED_DAY
            start = min(max(start, now - SIMULATED_DAY), now - timedelta(seconds=1))
            faults = [part for name, share in FAULTS.items() for part in (f"--{name}", str(share))]
            arguments = [
                *("--seed", str(SEED), "--speed", "max"),
                *("--start", _iso(start), "--end", _iso(now), *faults),
            ]
            trades = sum(
                market[product].last_trade_id(micros(now))
                - market[product].last_trade_id(micros(start))
                for product in products
            )
            path = "/"
        async with _simulator(arguments) as address:
            status_url = f"http://{address}/simulator/status"
            yield Feed(f"ws://{address}{path}", products, trades, status_url)

    def _chosen_of(
        self, default: tuple[str, ...], offered: tuple[str, ...] | None = None
    ) -> tuple[str, ...]:
        unknown = set(self._products or ()) - set(offered or default)
        if unknown:
            raise DemoError(
                f"There is no {', '.join(sorted(unknown))} in {self._source}. "
                f"Choose --products among {', '.join(offered or default)}."
            )
        return self._products or default

    async def _newest_candle(self) -> datetime | None:
        connection = await self._settings.connection(Role.READER).connect()
        try:
            if await connection.fetchval("select to_regclass('gold.ohlc_1m')") is None:
                return None
            newest: datetime | None = await connection.fetchval(
                "select max(bucket_1m) from gold.ohlc_1m where bucket_1m < now()"
            )
            return newest
        finally:
            await connection.close()

    def _progress(self) -> Progress:
        return Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            TextColumn("{task.fields[told]}"),
            TimeColumn(),
            console=self._console,
        )


def _market_frames(stats: CaptureStats) -> int:
    """Count the frames of the market: not heartbeats nor answers to subscribing."""
    service = ("heartbeat", "subscriptions", "error")
    return stats.frames - sum(stats.frames_by_type.get(kind, 0) for kind in service)


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S")


@asynccontextmanager
async def _simulator(arguments: list[str]) -> AsyncIterator[str]:
    """Run `medallion simulate` beside us, on its own core, and stop it at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    command = [sys.executable, "-m", "medallion", "simulate", "--port", str(port)]
    with (
        tempfile.TemporaryFile() as output,
        subprocess.Popen(  # noqa: ASYNC220  (starts at once)
            [*command, "--until-stdin-ends", *arguments],
            cwd=PROJECT_ROOT,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            # Ctrl-C is for the demo, which still saves what has arrived and then ends this.
            start_new_session=True,
        ) as process,
    ):
        try:
            if not await _answers(f"http://127.0.0.1:{port}/simulator/status", process):
                process.kill()
                process.wait()
                output.seek(0)
                said = output.read().decode(errors="replace")
                raise FailedError(f"The simulator did not start: {said}")
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()


async def _answers(url: str, process: subprocess.Popen[bytes], patience: float = 20) -> bool:
    deadline = time.monotonic() + patience
    async with httpx.AsyncClient() as client:
        while process.poll() is None and time.monotonic() < deadline:
            try:
                await client.get(url)
            except httpx.ConnectError:
                await asyncio.sleep(0.1)
            else:
                return True
    return False
