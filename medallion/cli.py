"""The command line: every part of medallion behind one name."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import asdict
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console

from ingestion.continuity import count
from ingestion.errors import (
    BackfillError,
    FatalBronzeError,
    FatalFeedError,
    FatalRestError,
    FatalSpoolError,
    IngestionError,
)
from ingestion.settings import IngestionSettings, explain
from medallion import bi as bi_tools
from medallion.errors import FailedError
from medallion.logs import log_to
from medallion.progress import Advance, progress
from orchestration.settings import OrchestrationSettings
from warehouse.settings import (
    PROJECT_ROOT,
    ArchiveError,
    ConnectionInfo,
    Role,
    WarehouseError,
    WarehouseSettings,
)

SIMULATOR_PORT = 8765
CODE_PORT = 4000


def _simulated(port: int) -> dict[str, str]:
    return {
        "coinbase_ws_url": f"ws://127.0.0.1:{port}",
        "coinbase_advanced_ws_url": f"ws://127.0.0.1:{port}/advanced",
        "coinbase_rest_url": f"http://127.0.0.1:{port}",
    }


SOURCES = {
    "live": {
        "coinbase_ws_url": "wss://ws-feed.exchange.coinbase.com",
        "coinbase_advanced_ws_url": "wss://advanced-trade-ws.coinbase.com",
        "coinbase_rest_url": "https://api.exchange.coinbase.com",
    },
    "simulator": _simulated(SIMULATOR_PORT),
}
"""Where the feeds of a source are."""

SETTINGS = {
    **WarehouseSettings.model_fields,
    **IngestionSettings.model_fields,
    **OrchestrationSettings.model_fields,
}

EXIT_CODES = {
    0: "done, or stopped as it should be",
    1: "failed, and trying again may help",
    2: "wrong settings or arguments, or no database: the message says how to put it right",
    3: "the server does not run (`medallion postgres status`)",
    130: "broken off by Ctrl-C",
}

app = typer.Typer(
    help="Crypto trades from Coinbase into PostgreSQL: bronze as received, silver typed and "
    "deduplicated, gold for BI tools. Begin with `medallion demo`.",
    epilog="Exit codes: " + "; ".join(f"{code} {what}" for code, what in EXIT_CODES.items()) + ".",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
postgres = typer.Typer(
    help="The embedded PostgreSQL, which is used while PGHOST is unset.", no_args_is_help=True
)
app.add_typer(postgres, name="postgres")
alerts = typer.Typer(
    help="Who is told of problems: SLACK_WEBHOOK_URL and ALERT_URLS.", no_args_is_help=True
)
app.add_typer(alerts, name="alerts")
dagster = typer.Typer()
app.add_typer(dagster, name="dagster")

console = Console()
errors = Console(stderr=True)


def _sources_like(incomplete: str) -> list[str]:
    return [name for name in SOURCES if name.startswith(incomplete)]


Products = Annotated[
    str | None,
    typer.Option(help="Products, separated by commas, for example BTC-USD,ETH-USD; or all."),
]
Source = Annotated[
    str | None,
    typer.Option(
        help="`live`, `simulator` (one started by `medallion simulate`), or a ws:// or wss:// URL. "
        "Default: COINBASE_WS_URL, which is the live feed unless set.",
        autocompletion=_sources_like,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]

Host = Annotated[
    str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in, too.")
]
Port = Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")]
Code = Annotated[str, typer.Option(help="Where `medallion dagster code` listens.")]


class WhoConnects(StrEnum):
    """The roles that a person or a tool connects as."""

    TRANSFORM = "transform"
    READER = "reader"
    INGEST = "ingest"
    ARCHIVE = "archive"
    ADMIN = "admin"

    @property
    def role(self) -> Role:
        """The role in the database."""
        return Role[self.name]


class Shell(StrEnum):
    """How a shell wants its variables set."""

    POSIX = "posix"
    POWERSHELL = "powershell"


@app.command()
def demo(
    source: Annotated[
        str,
        typer.Option(
            help="`simulator`; `live` for the real Coinbase; or a file of recorded frames, one "
            "JSON object per line."
        ),
    ] = "simulator",
    products: Products = None,
    minutes: Annotated[
        float, typer.Option(min=0.1, help="How long to listen to the live market.")
    ] = 3,
) -> None:
    """See everything run: a market day streams through bronze and silver to gold, and is shown.

    Needs nothing else: PostgreSQL is embedded, the exchange simulated. Run again, it continues.
    """
    from medallion.demo import Demo  # noqa: PLC0415  (dbt takes seconds to import)

    given: dict[str, Any] = {"coinbase_products": products}
    chosen = IngestionSettings(**given).coinbase_products if products is not None else None
    Demo(WarehouseSettings(), console, source, chosen, minutes * 60).run()


@app.command()
def up(
    source: Annotated[
        str | None,
        typer.Option(
            help="`live`; `simulator` (one of its own); or a ws:// or wss:// URL. Default: "
            "COINBASE_WS_URL, which is the live feed unless set."
        ),
    ] = None,
    dagster_port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port of Dagster's UI on 127.0.0.1.")
    ] = 3000,
    dashboard_port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port of the market page on 127.0.0.1.")
    ] = 8501,
) -> None:
    """Run everything in this terminal until stopped: database, ingester, dbt, Dagster, market page.

    What ends is started again. Ctrl-C stops all of it in order, and saves what has come.
    """
    from medallion.stack import Stack, services, with_simulator  # noqa: PLC0415  (--help is quick)
    from warehouse.embedded import free_port  # noqa: PLC0415

    simulated = source == "simulator"
    simulator_port = free_port()
    given = _simulated(simulator_port) if simulated else _of_source(source)
    feed = IngestionSettings(**given).coinbase_ws_url
    _refuse_taken_port("127.0.0.1", dagster_port, "--dagster-port")
    _refuse_taken_port("127.0.0.1", dashboard_port, "--dashboard-port")
    _install_packages()
    running = services(dagster_port, dashboard_port, free_port())
    if simulated:
        running = with_simulator(running, simulator_port)
    variables = {name.upper(): value for name, value in given.items()}

    async def run() -> None:
        await Stack(WarehouseSettings(), running, variables, feed, console).run()

    asyncio.run(run())


@app.command()
def ingest(
    source: Source = None,
    products: Products = None,
) -> None:
    """Record trades into bronze until stopped (Ctrl-C saves what is buffered, then ends).

    Trades that the feed left out are fetched over REST.
    """
    from ingestion.capture import Capture, stop_on_signals  # noqa: PLC0415  (--help is quick)
    from warehouse.migrate import refuse_other_versions  # noqa: PLC0415

    given = _of_source(source)
    if products is not None:
        given["coinbase_products"] = products
    settings = IngestionSettings(**given)
    connection = WarehouseSettings().connection(Role.INGEST)
    settings = settings.with_spool_of(connection.database)

    async def run() -> None:
        await refuse_other_versions(connection)
        capture = Capture(settings, connection.open)
        with stop_on_signals(capture.stop):
            stats = await capture.run()
        told = (
            f"Stopped. {stats.trades:,} trades received, {stats.rows:,} rows in bronze, "
            f"{stats.rejected:,} frames rejected, {stats.reconnects:,} reconnects, "
            f"{stats.repaired:,} missing trades fetched."
        )
        if stats.spooled:
            told += (
                f" {stats.spooled:,} frames wait in the spool: the next `medallion ingest` saves "
                "them."
            )
        if stats.not_kept:
            told += f" {stats.not_kept:,} frames were NOT kept: the spool was full."
        errors.print(told)

    asyncio.run(run())


@app.command()
def backfill(
    product: Annotated[str, typer.Option(help="Product, for example BTC-USD.")],
    from_id: Annotated[int | None, typer.Option(min=1, help="First trade id.")] = None,
    to_id: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Last trade id; all up to it are fetched, also those that are in bronze. Default: "
            "those that are not, up to the newest.",
        ),
    ] = None,
    since: Annotated[
        datetime | None,
        typer.Option(
            help="In place of --from-id: the first trade's time (UTC), for example "
            "2026-11-24T22:00."
        ),
    ] = None,
    source: Source = None,
) -> None:
    """Fetch a product's history over REST into bronze: at most 10,000 trades a second.

    Stopped, it goes on where it was when it is run again, or a running ingester does. What lies
    between the history and the newest trade is fetched by the next `medallion ingest`.
    """
    from ingestion.backfill import Backfill, Request  # noqa: PLC0415  (--help is quick)
    from ingestion.coinbase.rest import RestClient  # noqa: PLC0415
    from ingestion.gaps import GapLedger  # noqa: PLC0415

    settings = IngestionSettings(**_of_source(source))
    request = Request(product.upper(), from_id, to_id, _utc(since))
    connection = WarehouseSettings().connection(Role.INGEST)

    async def run() -> None:
        with progress(errors, request.product_id, "trades") as advance:
            ledger = GapLedger(connection.connect)
            try:
                async with RestClient(settings.rest_url) as rest:
                    told = await Backfill(ledger, rest, advance).run(request)
            finally:
                ledger.close()
        console.print(
            f"{request.product_id} {told.asked.first} to {told.asked.last}: "
            f"{told.trades:,} trades fetched."
        )
        if told.missing:
            console.print(
                f"{count(told.missing):,} of these ids the exchange does not have, or not yet; the "
                "ingester asks for them again."
            )
        for first, last in told.waiting:
            console.print(
                f"{first} to {last}, between these and the history that is kept, stay open: fetch "
                f"them with --from-id {first} --to-id {last}."
            )

    asyncio.run(run())


@app.command()
def reconcile(source: Source = None, as_json: AsJson = False) -> None:
    """Compare candles with the exchange's own: fetch those that have settled, build, and count.

    Where not all trades of a candle are here, it says so instead.
    """
    from medallion import dbt  # noqa: PLC0415  (--help is quick)
    from orchestration.candles import fetch_due_candles, verdicts  # noqa: PLC0415

    settings = IngestionSettings(**_of_source(source))
    warehouse = WarehouseSettings()
    connection = warehouse.connection(Role.TRANSFORM)
    _install_packages()
    with progress(errors, "Asking the exchange", "requests") as advance:
        fetched = asyncio.run(fetch_due_candles(warehouse, settings.rest_url, advance))
    with progress(errors, "Building", "models and checks") as advance:
        failures = dbt.build(connection, advance)
    counted = asyncio.run(verdicts(connection))
    if as_json:
        names = ("granularity", "verdict", "candles")
        told = asdict(fetched) | {
            "verdicts": [dict(zip(names, verdict, strict=True)) for verdict in counted],
            "failures": failures,
        }
        typer.echo(json.dumps(told, indent=2))
    else:
        console.print(f"{fetched.answers:,} answers of the exchange, {fetched.refused:,} refused.")
        for granularity, verdict, candles in counted:
            console.print(f"{granularity}  {verdict:12}{candles:>12,} candles", highlight=False)
    if failures:
        raise FailedError("\n".join(failures))


@app.command()
def products(source: Source = None) -> None:
    """Fetch the exchange's list of products into bronze, once. Dagster does so each hour."""
    from ingestion.catalogue import fetch_catalogue  # noqa: PLC0415  (--help is quick)
    from ingestion.coinbase.rest import RestClient  # noqa: PLC0415

    settings = IngestionSettings(**_of_source(source))
    info = WarehouseSettings().connection(Role.INGEST)

    async def run() -> None:
        connection = await info.connect()
        try:
            with progress(errors, "Asking the exchange"):
                async with RestClient(settings.rest_url) as rest:
                    fetched = await fetch_catalogue(rest, connection)
        finally:
            await connection.close()
        console.print(f"{fetched.products:,} products saved.")
        if fetched.refused:
            console.print(
                f"{fetched.refused:,} that jsonb can't hold are in bronze.coinbase_frames_rejected."
            )

    asyncio.run(run())


@app.command()
def transform(
    every: Annotated[
        str,
        typer.Option(help="From the start of a build to that of the next, for example 5s or 1m."),
    ] = "5s",
) -> None:
    """Bring silver and gold up to date whenever bronze has new trades, until stopped.

    Dagster is told of each build. Ctrl-C lets a build that is under way end.
    """
    seconds = _seconds(every)
    from ingestion.capture import stop_on_signals  # noqa: PLC0415  (--help is quick)
    from orchestration.settings import prepare_home  # noqa: PLC0415
    from orchestration.transform import Transform, open_instance  # noqa: PLC0415

    connection = WarehouseSettings().connection(Role.TRANSFORM)
    _install_packages()
    prepare_home()

    async def run() -> None:
        with open_instance() as instance:
            continuous = Transform(connection, instance, seconds)
            with stop_on_signals(continuous.stop):
                await continuous.run()
        errors.print(f"Stopped after {continuous.builds:,} builds.")

    asyncio.run(run())


@dagster.callback(invoke_without_command=True)
def dagster_dev(
    context: typer.Context,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on 127.0.0.1.")] = 3000,
) -> None:
    """Run Dagster until stopped: its UI, and the daemon that starts what is due.

    The commands below run its three parts one by one, as `medallion up` and docker-compose.yml do.
    """
    if context.invoked_subcommand is not None:
        return
    WarehouseSettings().connection(Role.TRANSFORM)
    # Dagster itself would take another, and not say so.
    _refuse_taken_port("127.0.0.1", port, "--port")
    _install_packages()
    if OrchestrationSettings().dagster_postgres_url is not None:
        from orchestration.transform import open_instance  # noqa: PLC0415  (takes seconds)

        # Dagster itself would tell of a storage that is away by tracebacks.
        open_instance().dispose()
    # What to load, pyproject.toml says.
    _become_dagster("dagster", "dev", "--host", "127.0.0.1", "--port", str(port))


@dagster.command("code")
def dagster_code(host: Host = "127.0.0.1", port: Port = CODE_PORT) -> None:
    """Serve the definitions to the other two, and run the jobs: the one part with passwords."""
    WarehouseSettings().connection(Role.TRANSFORM)
    _install_packages()
    address = ("--host", host, "--port", str(port))
    what = ("--module-name", "orchestration.definitions")
    # Jobs run by this Python, wherever PATH leads.
    python = "--use-python-environment-entry-point"
    _become_dagster("dagster", "api", "grpc", *address, *what, python)


@dagster.command("webserver")
def dagster_webserver(
    host: Host = "127.0.0.1", port: Port = 3000, code: Code = f"127.0.0.1:{CODE_PORT}"
) -> None:
    """Show the UI. Anyone who reaches its port may start and stop jobs."""
    address = ("--host", host, "--port", str(port))
    _become_dagster("dagster-webserver", *address, *_workspace(code))


@dagster.command("daemon")
def dagster_daemon(code: Code = f"127.0.0.1:{CODE_PORT}") -> None:
    """Start what is due."""
    _become_dagster("dagster-daemon", "run", *_workspace(code))


@app.command()
def dashboard(port: Port = 8501, host: Host = "127.0.0.1") -> None:
    """Show the market page until stopped: candles, movers, checks and the pipeline.

    It reads gold and the history of runs and checks, as medallion_reader.
    """
    # What is set wrongly is told here; a database that is away, on the page.
    WarehouseSettings().connection(Role.READER)
    _refuse_taken_port(host, port, "--port and --host")
    command = [sys.executable, "-m", "dashboards", "run", "market.py"]
    address = ["--server.address", host, "--server.port", str(port)]
    console.print(f"The market page is on http://{host}:{port}. Ctrl-C stops it.")
    # Its .streamlit/config.toml says how it looks, and that it tells nobody.
    os.chdir(PROJECT_ROOT / "dashboards")
    # In place of this process: what stops this one stops it.
    os.execv(sys.executable, [*command, *address])  # noqa: S606  (no shell is what is wanted)


@app.command()
def docs(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on 127.0.0.1.")] = 8080,
) -> None:
    """Show dbt's documentation until stopped: every table and column, and the lineage.

    Types are those of the database: build it first.
    """
    from medallion.docs import open_server, serve, write_pages  # noqa: PLC0415  (--help is quick)
    from orchestration.bronze import look_at_bronze  # noqa: PLC0415

    connection = WarehouseSettings().connection(Role.TRANSFORM)
    with open_server(port) as server:
        # Of a database that is away or not migrated, dbt would tell at length.
        asyncio.run(look_at_bronze(connection))
        _install_packages()
        with progress(errors, "Writing the pages"):
            write_pages(connection)
        console.print(f"The documentation is on http://127.0.0.1:{port}. Ctrl-C stops it.")
        serve(server)


@app.command()
def simulate(
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")
    ] = SIMULATOR_PORT,
    seed: Annotated[int, typer.Option(help="Another seed is another market.")] = 0,
    speed: Annotated[
        str, typer.Option(help="Market seconds per second, or `max`: as fast as readers take it.")
    ] = "1",
    start: Annotated[
        datetime | None, typer.Option(help="Market time to begin at (UTC). Default: now.")
    ] = None,
    end: Annotated[
        datetime | None, typer.Option(help="Market time after which only heartbeats come (UTC).")
    ] = None,
    duplicates: Annotated[float, typer.Option(min=0, max=1, help="Share sent twice.")] = 0,
    late: Annotated[float, typer.Option(min=0, max=1, help="Share sent late.")] = 0,
    dropped: Annotated[float, typer.Option(min=0, max=1, help="Share never sent.")] = 0,
    malformed: Annotated[
        float, typer.Option(min=0, max=1, help="Malformed frames added, per trade.")
    ] = 0,
    wrong_candles: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the candles that are wrong.")
    ] = 0,
    recording: Annotated[
        Path | None, typer.Option(help="Serve the frames recorded in this file instead.")
    ] = None,
    until_stdin_ends: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Run a local Coinbase until stopped: both WebSocket feeds and REST."""
    from simulator.exchange import Exchange, ExchangeConfig  # noqa: PLC0415  (--help is quick)
    from simulator.faults import Faults, RestFaults  # noqa: PLC0415
    from simulator.recording import Recording, RecordingServer  # noqa: PLC0415
    from simulator.server import FeedServer, run  # noqa: PLC0415

    def ready(server: FeedServer) -> None:
        for what, address in server.addresses.items():
            errors.print(f"{what:20}{address}")
        errors.print("Ctrl-C stops it.")

    try:
        server: FeedServer
        if recording:
            server = RecordingServer(Recording.load(recording), port=port)
        else:
            faults = Faults(duplicates=duplicates, late=late, dropped=dropped, malformed=malformed)
            config = ExchangeConfig(
                seed=seed,
                start=_utc(start),
                end=_utc(end),
                speed=_market_speed(speed),
                port=port,
                faults=faults,
                advanced_faults=faults,
            )
            server = Exchange(config)
            server.rest_faults = RestFaults(wrong_candles=wrong_candles)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if until_stdin_ends:
        # However the process that started this one ends, even killed, its end of the pipe closes.
        threading.Thread(target=_stop_when_stdin_ends, daemon=True).start()
    try:
        asyncio.run(run(server, ready))
    except OSError as error:
        raise typer.BadParameter(
            f"Port {port} can't be opened ({error.strerror}): choose another with --port."
        ) from None


@app.command()
def migrate() -> None:
    """Make the database, or bring it to the newest migration."""
    from warehouse.migrate import migrate as run  # noqa: PLC0415  (--help is quick)

    settings = WarehouseSettings()
    if settings.embedded:
        _start_embedded(settings)
    with progress(errors, "Migrating the database"):
        applied = asyncio.run(run(settings))
    console.print("\n".join(f"applied {name}" for name in applied) or "Nothing to do.")


@app.command()
def archive(
    day: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d"], help="This day (UTC) alone, for example 2026-11-01."),
    ] = None,
) -> None:
    """Move days of bronze that MEDALLION_BRONZE_DAYS does not keep to Parquet files.

    A day is dropped when it was read back from them, and dbt has transformed and checked it.
    """
    from warehouse.archive import open_archive  # noqa: PLC0415  (--help is quick)

    settings = WarehouseSettings()
    keep_days = settings.medallion_bronze_days
    if day is None and keep_days is None:
        raise WarehouseError(
            "MEDALLION_BRONZE_DAYS is not set, so bronze is kept for ever. Set it to how many days "
            "are to stay, or archive one with --day."
        )

    async def run(advance: Advance) -> None:
        async with open_archive(settings, advance) as opened:
            if day and (why_not := await opened.why_not(day.date(), keep_days)):
                raise ArchiveError(why_not)
            days = [day.date()] if day else await opened.due(keep_days or 0)
            for each in days:
                if why_not := await opened.why_not(each, keep_days):
                    errors.print(why_not, style="yellow", soft_wrap=True)
                    continue
                moved = await opened.archive(each)
                told = f"Archived {moved}." if moved.files else f"Bronze has nothing of {each}."
                console.print(told, highlight=False)
        if not days:
            console.print(f"Bronze has nothing from before the last {keep_days} days.")

    with progress(errors, "Archiving", "rows") as advance:
        asyncio.run(run(advance))


@app.command()
def restore(
    day: Annotated[
        datetime, typer.Option(formats=["%Y-%m-%d"], help="The day (UTC), for example 2026-11-01.")
    ],
    product: Annotated[
        str | None, typer.Option(help="This product alone, for example BTC-USD.")
    ] = None,
) -> None:
    """Bring an archived day back to bronze, where it stays for MEDALLION_BRONZE_DAYS again."""
    from warehouse.archive import Moved, open_archive  # noqa: PLC0415  (--help is quick)

    async def run(advance: Advance) -> Moved:
        async with open_archive(WarehouseSettings(), advance) as opened:
            return await opened.restore(day.date(), product)

    with progress(errors, "Restoring", "rows") as advance:
        restored = asyncio.run(run(advance))
    console.print(
        f"Restored {restored}." if restored.files else "All of it is in bronze already.",
        highlight=False,
    )


@app.command()
def deps() -> None:
    """Install dbt's packages: from its hub, or the ones kept here where that can't be reached."""
    from medallion.dbt import deps as run  # noqa: PLC0415  (--help is quick)

    with progress(errors, "Asking dbt's package hub"):
        from_hub = run()
    if from_hub:
        console.print("Installed the packages of packages.yml from dbt's hub.")
    else:
        console.print(
            "dbt's package hub can't be reached (dbt_project/logs/dbt.log says why).\n"
            "Installed offline_packages/ instead: the same tests, the same verdicts."
        )


@app.command()
def env(
    role: Annotated[WhoConnects, typer.Option(help="Who connects.")] = WhoConnects.TRANSFORM,
    shell: Annotated[Shell, typer.Option(help="Whose syntax.")] = (
        Shell.POWERSHELL if sys.platform == "win32" else Shell.POSIX
    ),
) -> None:
    """Print the variables that a bare `dbt build`, psql or a BI tool needs, password included.

    In a POSIX shell: eval "$(medallion env)"; in PowerShell: medallion env | Invoke-Expression.
    """
    connection = WarehouseSettings().connection(role.role)
    _warn_of_more_rights(role, connection)
    for name, value in connection.environment().items():
        if shell is Shell.POSIX:
            quoted = value.replace("'", "'\\''")
            typer.echo(f"export {name}='{quoted}'")
        else:
            quoted = value.replace("'", "''")
            typer.echo(f"$Env:{name} = '{quoted}'")


@app.command()
def bi(
    show_password: Annotated[
        bool, typer.Option("--show-password", help="Print the password, too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print what to type into Power BI, Metabase and other BI tools, to read gold."""
    connection = WarehouseSettings().connection(Role.READER)
    _warn_of_more_rights(WhoConnects.READER, connection)
    tools = bi_tools.values(connection, show_password=show_password)
    if as_json:
        typer.echo(json.dumps(tools, indent=2))
    else:
        bi_tools.show(console, tools)
        if not show_password:
            console.print("`medallion bi --show-password` shows the password.")


@app.command()
def status(as_json: AsJson = False) -> None:
    """Show for each table its rows, its newest entry, and how far it lags behind bronze."""
    from medallion.status import read_status, show_status  # noqa: PLC0415  (--help is quick)

    tables = asyncio.run(read_status(WarehouseSettings().connection(Role.TRANSFORM)))
    if as_json:
        typer.echo(json.dumps([table.as_dict() for table in tables], indent=2))
    else:
        show_status(console, tables)


@postgres.command("start")
def postgres_start() -> None:
    """Start the embedded server, making it first if there is none."""
    port = _start_embedded(_embedded_settings())
    console.print(f"PostgreSQL listens on 127.0.0.1:{port}.")


@postgres.command("stop")
def postgres_stop() -> None:
    """Stop the embedded server."""
    from warehouse.embedded import EmbeddedServer  # noqa: PLC0415  (--help is quick)

    settings = _embedded_settings()
    with progress(errors, "Stopping PostgreSQL"):
        stopped = EmbeddedServer.of(settings).stop()
    console.print("Stopped." if stopped else "It was not running.")


@postgres.command("status")
def postgres_status(as_json: AsJson = False) -> None:
    """Tell whether the embedded server runs (exit code 0) or not (3)."""
    from warehouse.embedded import EmbeddedServer  # noqa: PLC0415  (--help is quick)

    settings = _embedded_settings()
    running = EmbeddedServer.of(settings).is_running()
    port = settings.connection(Role.ADMIN).port if running else None
    if as_json:
        typer.echo(json.dumps({"running": running, "port": port}))
    elif running:
        console.print(f"Running on 127.0.0.1:{port}.")
    else:
        console.print("Not running. Start it with `medallion postgres start`.")
    if not running:
        raise typer.Exit(3)


@postgres.command(
    "psql", context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
)
def postgres_psql(
    context: typer.Context,
    role: Annotated[WhoConnects, typer.Option(help="Who connects.")] = WhoConnects.TRANSFORM,
) -> None:
    """Open psql on the database; further arguments go to psql, for example -c 'select 1'."""
    from warehouse.embedded import BINARIES  # noqa: PLC0415  (--help is quick)

    connection = WarehouseSettings().connection(role.role)
    psql = BINARIES / ("psql.exe" if sys.platform == "win32" else "psql")
    environment = {**os.environ, **connection.environment()}
    done = subprocess.run([psql, *context.args], env=environment, check=False)
    raise typer.Exit(done.returncode)


@alerts.command("test")
def alerts_test(as_json: AsJson = False) -> None:
    """Send a message to each target, and tell which did not take it, and why."""
    from orchestration.defs.alerts.news import Message  # noqa: PLC0415  (--help is quick)
    from orchestration.defs.alerts.targets import DeliveryError, configured  # noqa: PLC0415

    targets = configured(OrchestrationSettings())
    if not targets:
        _fail("Nobody is told of problems: set SLACK_WEBHOOK_URL or ALERT_URLS.", 2)
    message = Message("This is a test", "Problems of medallion will be told here.")
    why_not: dict[str, str | None] = {}
    for target in targets:
        try:
            with progress(errors, f"Sending to {target.name}"):
                target.send([message])
        except DeliveryError as error:
            why_not[target.name] = str(error)
        else:
            why_not[target.name] = None
    if as_json:
        told = [{"target": name, "error": reason} for name, reason in why_not.items()]
        typer.echo(json.dumps(told, indent=2))
    for name, reason in why_not.items():
        if reason is not None:
            line = f"{name}: not delivered. {reason}"
            errors.print(line, style="red", markup=False, soft_wrap=True)
        elif not as_json:
            console.print(f"{name}: delivered.")
    if failed := sum(reason is not None for reason in why_not.values()):
        raise FailedError(f"{failed} of {len(targets)} targets took no message.")


def _warn_of_more_rights(who: WhoConnects, connection: ConnectionInfo) -> None:
    """Tell where a role has no password of its own, and PGUSER connects in its place."""
    if who is not WhoConnects.ADMIN and connection.user != who.role.value:
        errors.print(
            f"MEDALLION_{who.name}_PASSWORD is not set: this is PGUSER ({connection.user}), with "
            "all that it may do.",
            style="yellow",
            soft_wrap=True,
        )


def _of_source(source: str | None) -> dict[str, Any]:
    """Return the settings that lead to a source: a name, or the URL of an Exchange feed."""
    if source is None:
        return {}
    return dict(SOURCES.get(source, {"coinbase_ws_url": source}))


def _seconds(text: str) -> float:
    """Read a duration of seconds or minutes."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m)", text)
    if found is None or float(found[1]) == 0:
        raise typer.BadParameter(
            f"--every is {text!r}: give seconds or minutes, for example 5s or 1m."
        )
    return float(found[1]) * {"s": 1, "m": 60}[found[2]]


def _become_dagster(program: str, *arguments: str) -> NoReturn:
    """Run one of Dagster's programs in place of this process: what stops this one stops it."""
    from orchestration.settings import prepare_home  # noqa: PLC0415  (--help is quick)

    prepare_home()
    os.chdir(PROJECT_ROOT)
    # Dagster takes SIGTERM for SIGINT, which a shell has its background jobs ignore.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    command = Path(sys.executable).with_name(program)
    os.execv(command, [str(command), *arguments])  # noqa: S606  (no shell is what is wanted)


def _refuse_taken_port(host: str, port: int, options: str) -> None:
    """Refuse a port that what is about to be started could not have."""
    try:
        with socket.create_server((host, port)):
            pass
    except OSError as error:
        raise typer.BadParameter(
            f"{host}:{port} can't be opened ({error.strerror}): choose another with {options}."
        ) from None


def _workspace(code: str) -> tuple[str, str]:
    from orchestration.settings import prepare_home, prepare_workspace  # noqa: PLC0415  (as above)

    host, _, port = code.rpartition(":")
    if not host or not port.isdecimal():
        raise typer.BadParameter(
            f"--code is {code!r}: give host and port, for example 127.0.0.1:{CODE_PORT}."
        )
    return "--workspace", str(prepare_workspace(prepare_home(), host, int(port)))


def _install_packages() -> None:
    from medallion import dbt  # noqa: PLC0415  (--help is quick)

    if not dbt.packages_are_installed():
        with progress(errors, "Asking dbt's package hub"):
            dbt.deps()


def _stop_when_stdin_ends() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


def _utc(moment: datetime | None) -> datetime | None:
    """Take a time without a zone for UTC."""
    return moment.replace(tzinfo=moment.tzinfo or UTC) if moment else None


def _market_speed(speed: str) -> float | None:
    try:
        return None if speed == "max" else float(speed)
    except ValueError:
        raise ValueError(
            f"--speed is {speed!r}: give market seconds per second, for example 60, or max."
        ) from None


def _embedded_settings() -> WarehouseSettings:
    settings = WarehouseSettings()
    if not settings.embedded:
        raise WarehouseError(
            f"PGHOST is {settings.pghost!r}: a server of your own is used, not the embedded one. "
            "Unset PGHOST to use the embedded one."
        )
    return settings


def _start_embedded(settings: WarehouseSettings) -> int:
    from warehouse.embedded import EmbeddedServer  # noqa: PLC0415  (--help is quick)

    with progress(errors, "Starting PostgreSQL"):
        return EmbeddedServer.of(settings).start()


def main() -> None:
    """Run the command line; EXIT_CODES says how it ends."""
    log_to(sys.stderr)
    try:
        _check_env_file()
        app()
    except ValidationError as error:
        _fail(explain(error, SETTINGS), 2)
    except (WarehouseError, IngestionError) as error:
        wrong = (
            BackfillError
            | FatalBronzeError
            | FatalFeedError
            | FatalRestError
            | FatalSpoolError
            | WarehouseError
        )
        fatal = isinstance(error, wrong)
        _fail(str(error), 2 if fatal else 1)
    except (ArchiveError, FailedError) as error:
        _fail(str(error), 1)
    except OSError as error:
        # For example a full disk: a traceback would not say more.
        _fail(f"The machine refused: {error}.", 1)


def _check_env_file() -> None:
    file = PROJECT_ROOT / ".env"
    try:
        if file.exists():
            file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise WarehouseError(f"{file} can't be read: {error}. Save it as UTF-8 text.") from None


def _fail(message: str, code: int) -> NoReturn:
    errors.print(message, style="red", markup=False, highlight=False, soft_wrap=True)
    raise SystemExit(code) from None
