"""`medallion up`: what ends comes back, and all of it ends in order."""

from __future__ import annotations

import asyncio
import io
import os
import re
import signal
from pathlib import Path

import pytest
from rich.console import Console

from medallion.stack import Service, Stack, with_simulator
from tests.conftest import SECONDS, Database, Server
from warehouse.settings import WarehouseError

pytestmark = [
    pytest.mark.postgres18_only,
    pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks into /proc"),
]


class Screen(io.StringIO):
    """What is shown."""

    def found(self, who: str, what: str) -> list[int]:
        """Return the numbers of the lines in which somebody says something."""
        line = re.compile(rf"{who} +\| .*{what}")
        return [n for n, text in enumerate(self.getvalue().splitlines()) if line.match(text)]

    async def wait_for(self, who: str, what: str, times: int = 1) -> None:
        async with asyncio.timeout(SECONDS):
            while True:
                if len(self.found(who, what)) >= times:
                    return
                await asyncio.sleep(0.05)


@pytest.fixture
def screen() -> Screen:
    return Screen()


@pytest.fixture
def stack(
    database: Database, screen: Screen, unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch
) -> Stack:
    """Of all services, two that start at once: an ingester, and the exchange that it reads."""
    for name, value in database.environment().items():
        monkeypatch.setenv(name, value)
    services = with_simulator([Service("ingest", ("ingest",))], unused_tcp_port)
    feed = f"ws://127.0.0.1:{unused_tcp_port}"
    return Stack(database.settings, services, {"COINBASE_WS_URL": feed}, feed, Console(file=screen))


def kill(command: str, number: signal.Signals) -> None:
    """Send a signal to the child that runs a command of medallion."""
    [children] = Path("/proc/self/task").glob(f"{os.getpid()}/children")
    for child in children.read_text().split():
        line = Path("/proc", child, "cmdline").read_text().split("\0")
        if line[1:4] == ["-m", "medallion", command]:
            os.kill(int(child), number)
            return
    pytest.fail(f"`medallion {command}` does not run")


async def test_what_is_killed_comes_back_and_the_ingester_ends_before_its_exchange(
    stack: Stack, screen: Screen, database: Database
) -> None:
    running = asyncio.create_task(stack.run())
    await screen.wait_for("ingest", "subscribed")
    kill("simulate", signal.SIGKILL)
    await screen.wait_for("simulator", "Ended by SIGKILL. Starts again in 1 s.")
    await screen.wait_for("ingest", "subscribed", times=2)
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(running, SECONDS)

    [summary], [last] = screen.found("ingest", "Stopped"), screen.found("ingest", "exit code 0")
    [exchange] = screen.found("simulator", "Ended with exit code 0")
    assert summary < last < exchange
    # It had all been saved when the ingester ended.
    shown = screen.getvalue().splitlines()[summary]
    [(rows,)] = await asyncio.to_thread(
        database.fetch, "select count(*) from bronze.coinbase_trades_raw"
    )
    assert f"| Stopped. {rows} trades received, {rows} rows in bronze" in shown
    assert rows > 0


async def test_a_second_ctrl_c_ends_what_does_not_end(stack: Stack, screen: Screen) -> None:
    running = asyncio.create_task(stack.run())
    await screen.wait_for("ingest", "subscribed")
    # It hears of nothing any more.
    kill("ingest", signal.SIGSTOP)
    os.kill(os.getpid(), signal.SIGINT)
    await screen.wait_for("medallion", "Stopping")
    assert not running.done()
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.wait_for(running, SECONDS)
    assert screen.found("ingest", "Ended by SIGKILL")


@pytest.mark.parametrize(
    ("recorded", "market"),
    [
        ("wss://advanced-trade-ws.coinbase.com", "Coinbase"),
        ("wss://ws-feed-public.sandbox.exchange.coinbase.com", "Coinbase's sandbox"),
    ],
)
async def test_another_market_is_not_mixed_in(
    stack: Stack, database: Database, recorded: str, market: str
) -> None:
    await asyncio.to_thread(
        database.fetch,
        "insert into bronze.feed_sessions (session_id, source, url, products, started_at) "
        "values (gen_random_uuid(), 'advanced_ws', $1, '{}', now())",
        recorded,
    )
    with pytest.raises(WarehouseError, match=f"holds trades from {market};"):
        await stack.run()


async def test_a_database_that_was_started_again_is_stopped_as_well(
    stack: Stack, screen: Screen, server: Server
) -> None:
    running = asyncio.create_task(stack.run())
    await screen.wait_for("ingest", "subscribed")
    try:
        await asyncio.to_thread(server.embedded.stop)
        await screen.wait_for("postgres", "Starts again")
        # While it starts.
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(running, SECONDS)
        assert screen.found("postgres", "Stopped.")
        assert not server.embedded.is_running()
    finally:
        await asyncio.to_thread(server.embedded.start)


async def test_under_nohup_it_outlives_its_terminal(stack: Stack, screen: Screen) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        running = asyncio.create_task(stack.run())
        await screen.wait_for("ingest", "subscribed")
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(running, SECONDS)
    finally:
        signal.signal(signal.SIGHUP, before)
    # Two signals that count would have killed it.
    assert screen.found("ingest", "Ended with exit code 0")
