"""How long a browser takes to show the market page, over a day of ten products.

    .venv/bin/python -m benchmarks.page [--full]

Debian's chromium opens the page as a new viewer each time, with nothing in its cache, on the
machine that also runs the page and the database.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import httpx
from playwright.sync_api import Browser, sync_playwright

from benchmarks.history import History
from benchmarks.measure import (
    environment,
    load,
    machine,
    middle,
    options,
    running,
    table,
    tell,
    warehouse,
)
from warehouse.embedded import free_port

CHROMIUM: Final = Path("/usr/bin/chromium")
PRODUCTS: Final = 10
TRADES: Final = 500_000
START_SECONDS: Final = 60
SHOWN: Final = {"heading": ".m h1", "last price": ".tile.large", "candles": ".main-svg"}
"""What a viewer waits for, and where it stands on the page."""
FIRST_PAINT: Final = "performance.getEntriesByName('first-contentful-paint')[0].startTime / 1000"


def open_page(browser: Browser, address: str) -> list[float]:
    """Open the page as a new viewer; return the seconds to its first paint and to each part."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.goto(address, wait_until="commit")
    seconds = []
    for selector in SHOWN.values():
        page.wait_for_selector(selector)
        # Since the browser began to ask for the page.
        seconds.append(page.evaluate("performance.now()") / 1000)
    painted = page.evaluate(FIRST_PAINT)
    context.close()
    return [painted, *seconds]


def wait_for(address: str) -> None:
    """Wait until the page's server answers."""
    until = time.monotonic() + START_SECONDS
    while True:
        try:
            httpx.get(address).raise_for_status()
        except httpx.HTTPError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)
        else:
            return


def main() -> None:
    """Measure once."""
    rounds = 20 if options(__doc__).parse_args().full else 5
    if not CHROMIUM.exists():
        raise SystemExit(f"{CHROMIUM} is not there: on Debian, `apt-get install chromium`.")
    load_before = load()
    with warehouse() as server, tempfile.TemporaryDirectory() as made:
        history = History(server, TRADES, Path(made), products=PRODUCTS, days=1)
        tell(f"a day of {history.trades:,} trades")
        history.receive()
        history.build()
        port = free_port()
        command = [sys.executable, "-m", "medallion", "dashboard", "--port", str(port)]
        address = f"http://127.0.0.1:{port}/"
        with running(command, **environment(history.settings)), sync_playwright() as playwright:
            wait_for(address)
            browser = playwright.chromium.launch(
                executable_path=CHROMIUM, args=["--no-sandbox"] if os.geteuid() == 0 else []
            )
            first = open_page(browser, address)
            later = [open_page(browser, address) for _ in range(rounds)]
            browser.close()
        names = ["first paint", *SHOWN]
        rows = [
            [name, f"{began:.2f}", middle(seconds, ".2f")]
            for name, began, seconds in zip(names, first, zip(*later, strict=True), strict=True)
        ]
        print(
            f"{TRADES:,} trades of {PRODUCTS} products in a day; seconds until it is there:\n\n"
            + table(["", "first viewer since the start", f"each of {rounds} more"], rows)
            + f"\n\n{machine(server, load_before)}"
        )


if __name__ == "__main__":
    main()
