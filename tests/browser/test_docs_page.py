"""`medallion docs` in a browser: the overview, a table with its columns, and the lineage."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import expect, sync_playwright

from tests.browser.conftest import CHROMIUM, PATIENCE_MS
from tests.dbt.conftest import Lakehouse

pytestmark = [
    pytest.mark.postgres18_only,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no browser: {CHROMIUM} is not there"),
]


def test_the_documentation_is_shown_without_another_host(
    lakehouse: Lakehouse, medallion: Callable[..., Any], unused_tcp_port: int
) -> None:
    lakehouse.dbt("run", "-s", "+ohlc_1m")
    address = f"http://127.0.0.1:{unused_tcp_port}/"
    environment = lakehouse.database.environment()
    with (
        medallion("docs", "--port", str(unused_tcp_port), **environment) as command,
        sync_playwright() as playwright,
    ):
        command.wait_for(lambda: address.removesuffix("/") in command.said)
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"] if os.geteuid() == 0 else []
        )
        expect.set_options(timeout=PATIENCE_MS)
        page = chromium.new_page()
        asked: list[str] = []
        complaints: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: complaints.append(str(error)))

        page.goto(address)
        expect(page.get_by_role("heading", name="One cursor")).to_be_visible()
        page.goto(f"{address}#!/model/model.medallion.ohlc_1m")
        high = page.locator("tr", has_text="high").first
        # From the database, and from YAML.
        expect(high).to_contain_text("numeric")
        expect(high).to_contain_text("Highest price")
        page.get_by_title("View Lineage Graph").click()
        expect(page.locator("#cy canvas").first).to_be_visible()

        chromium.close()
        assert {url.startswith(address) for url in asked} == {True}
        assert complaints == []
        assert command.end(signal.SIGINT) == 0
