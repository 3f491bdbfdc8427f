"""A market of two weeks, the page that shows it, and a browser that looks."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.conftest import SECONDS, Database, Server
from tests.dbt.conftest import Dbt, Lakehouse, match

CHROMIUM = Path("/usr/bin/chromium")
FILLED = "filled_market"
PATIENCE_MS = 20_000
"""The page refreshes itself every 5 s."""
PRICES = {
    "BTC-USD": (84_000, 2), "ETH-USD": (2_600, 2), "SOL-USD": (127, 2), "XRP-USD": (2.04, 4),
    "DOGE-USD": (0.1774, 5), "LINK-USD": (12.9, 3), "ADA-USD": (0.55, 4), "AVAX-USD": (19.6, 2),
    "PEPE-USD": (0.00000389, 8), "BONK-USD": (0.00000017, 8),
}  # fmt: skip
"""What each product costs, about, and how many decimals it has."""
DAYS = 14
MALFORMED: tuple[dict[str, Any], ...] = (
    {"price": "abc"},
    {"price": "<b>1</b>"},
    {"size": "-1"},
    {"side": "hold"},
    {"size": None},
    {"price": "NaN"},
)

T = TypeVar("T")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--screenshots", help="Take the README's screenshots, into this folder.")


def elsewhere(work: Callable[[], T]) -> T:
    """Do what runs an event loop of its own: the browser's runs in this thread."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def walk(product_id: str, times: list[datetime]) -> list[dict[str, Any]]:
    """Return a trade of a product at each of these times, at prices that wander."""
    price, decimals = PRICES[product_id]
    # The first have most turnover.
    turnover = 20_000 / (1 + list(PRICES).index(product_id))
    chance = random.Random(product_id)
    trades = []
    for trade_id, at in enumerate(times, 1):
        price *= 1 + chance.gauss(0, 0.0015)
        trades.append(
            match(
                trade_id,
                product_id=product_id,
                price=f"{price:.{decimals}f}",
                size=f"{chance.expovariate(price / turnover):.8f}",
                side=chance.choice(("buy", "sell")),
                time=f"{at:%Y-%m-%dT%H:%M:%S.%fZ}",
            )
        )
    return trades


def fill(lakehouse: Lakehouse) -> None:
    """Let two weeks of ten products arrive, an hour apart and on the last day about a minute."""
    now = datetime.now(UTC)
    minute, hour, day = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
    times = [now - day * DAYS + hour * n for n in range(24 * (DAYS - 1))]
    chance = random.Random(0)
    times += sorted(now - day + day * chance.random() for _ in range(24 * 60))
    for hours in range(48, 0, -2):
        at = now - hours * hour
        time = {"time": f"{at:%Y-%m-%dT%H:%M:%SZ}"}
        bad = [MALFORMED[(hours // 2 * n) % len(MALFORMED)] for n in range(2, 3 + hours % 7)]
        lakehouse.receive(*(match(9_000, **(time | fields)) for fields in bad), received_at=at)
    markets = [walk(product_id, times) for product_id in PRICES]
    first = [trade for trades in markets for trade in (*trades[:400], *trades[395:-40])]
    lakehouse.receive(*first, received_at=now - 9 * minute)
    lakehouse.build()
    for trades in markets[:2]:
        lakehouse.receive(*trades[-40:-20], trades[-1], *trades[-20:-3], trades[-2])
        lakehouse.repair(trades[-3])
    lakehouse.receive(*(trade for trades in markets[2:] for trade in trades[-40:]))
    lakehouse.record_gap(absent="{[7,8)}", product_id="ETH-USD")
    lakehouse.database.execute(
        "insert into bronze.feed_sessions (session_id, source, url, products, started_at, frames, "
        "trades, ended_at, end_reason) values "
        "(gen_random_uuid(), 'exchange_ws', 'wss://x', '{BTC-USD,ETH-USD,SOL-USD}', "
        "now() - interval '3 hours', 5911, 5780, now() - interval '8 minutes', 'silence'), "
        "(gen_random_uuid(), 'exchange_ws', 'wss://x', '{BTC-USD,ETH-USD,SOL-USD}', "
        "now() - interval '8 minutes', 411, 402, null, null)"
    )
    for _ in range(2):
        lakehouse.dbt("build")


@pytest.fixture(scope="module")
def filled(server: Server, dbt: Dbt) -> Iterator[None]:
    """Fill a database once, to be copied for each test."""
    fill(Lakehouse(server.fresh_database(), dbt))
    server.maintain(f"alter database crypto_dw rename to {FILLED}")
    yield
    server.maintain(f"drop database {FILLED}")


@pytest.fixture
def house(server: Server, dbt: Dbt, filled: None) -> Lakehouse:
    """Lead the page to a copy of the filled database."""
    return Lakehouse(elsewhere(lambda: server.fresh_database(FILLED)), dbt)


@pytest.fixture
def database(server: Server) -> Database:
    """Lead the page to a database that is migrated, and not built."""
    return elsewhere(server.fresh_database)


@pytest.fixture(scope="module")
def address(
    server: Server, filled: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The page, started as a user starts it."""
    database = Database(server.settings.model_copy(update={"pgdatabase": "crypto_dw"}))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("dashboard") / "log"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [sys.executable, "-m", "medallion", "dashboard", "--port", str(port)],
            # By its credentials alone: PGPORT would hold it to a port that a restart may change.
            env={**os.environ, "MEDALLION_HOME": str(database.settings.medallion_home)},
            stdout=output,
            stderr=output,
        ) as process,
    ):
        try:
            until = time.monotonic() + SECONDS
            while b"Uvicorn server started" not in log.read_bytes():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}"
            # The page's own: Streamlit logs one, too, of a browser that leaves while it connects.
            assert "dashboards/" not in log.read_text()
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def browser(filled: None) -> Iterator[Browser]:
    """Debian's chromium; after what runs event loops of its own."""
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"] if os.geteuid() == 0 else []
        )
        yield chromium
        chromium.close()


@dataclass(frozen=True)
class Viewer:
    """A browser's window, and what it asked for and complained of."""

    page: Page
    hosts: set[str]
    complaints: list[str]


@pytest.fixture
def view(browser: Browser, address: str) -> Iterator[Callable[..., Page]]:
    """Open the page; at the end nothing was asked of another host, and nothing went wrong."""
    viewers = []

    def open_page(query: str = "", zone: str = "UTC") -> Page:
        context = browser.new_context(viewport={"width": 1280, "height": 800}, timezone_id=zone)
        context.set_default_timeout(PATIENCE_MS)
        viewer = Viewer(context.new_page(), set(), [])
        viewer.page.on("request", lambda request: viewer.hosts.add(request.url.split("/")[2]))
        viewer.page.on("pageerror", lambda error: viewer.complaints.append(str(error)))
        viewer.page.on(
            "console",
            lambda said: viewer.complaints.append(said.text) if said.type == "error" else None,
        )
        viewers.append(viewer)
        viewer.page.goto(f"{address}/{query}")
        return viewer.page

    yield open_page
    for viewer in viewers:
        viewer.page.context.close()
        assert viewer.hosts == {address.removeprefix("http://")}
        assert viewer.complaints == []
