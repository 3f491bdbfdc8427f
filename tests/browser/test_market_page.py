"""The market page as a viewer sees it, in a real browser."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Page, expect

from dashboards import formats
from dashboards.queries import REJECTS_SHOWN
from tests.browser.conftest import CHROMIUM, elsewhere
from tests.conftest import Database, Server
from tests.dbt.conftest import Lakehouse, match

pytestmark = [
    pytest.mark.postgres18_only,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no browser: {CHROMIUM} is not there"),
]

Scheme = Literal["light", "dark"]
SCHEMES: dict[str, Scheme] = {"Market": "light", "Quality": "light", "Pipeline": "dark"}
BACKGROUNDS = {"light": "rgb(252, 252, 251)", "dark": "rgb(15, 20, 24)"}
View = Callable[..., Page]
STARTS = "document.querySelector('.js-plotly-plot')?.data?.[0].x"


def last_price(house: Lakehouse, product_id: str) -> str:
    (row,) = elsewhere(
        lambda: house.database.fetch(
            "select close, open, high, low from gold.ohlc_1m where product_id = $1 "
            "order by bucket_1m desc limit 1",
            product_id,
            role="medallion_reader",
        )
    )
    return formats.price(row["close"], formats.tick_decimals(row.values()))


def charts(page: Page) -> None:
    """Wait until a chart is drawn."""
    page.locator(".js-plotly-plot .main-svg").first.wait_for()


def choose(page: Page, group: str, option: str) -> None:
    """Choose one of the options that stand side by side."""
    page.get_by_role("radiogroup", name=group).get_by_role("radio", name=option).click()


def test_product_and_interval_are_switched_and_stay_in_the_address(
    house: Lakehouse, view: View
) -> None:
    page = view()
    expect(page.locator(".tile.large")).to_contain_text(last_price(house, "BTC-USD"))
    expect(page.locator(".m table.heat th", has_text="PEPE-USD")).to_be_visible()
    page.get_by_role("combobox", name="Product").click()
    page.get_by_role("option", name="PEPE-USD").click()
    expect(page.locator(".tile.large")).to_contain_text(last_price(house, "PEPE-USD"))
    choose(page, "Interval", "1h")
    page.wait_for_function(f"new Date({STARTS}?.[1]) - new Date({STARTS}?.[0]) == 3600e3")
    expect(page).to_have_url(re.compile("interval=1h&product=PEPE-USD"))
    again = view(page.url.rpartition("/")[2])
    expect(again.locator(".tile.large")).to_contain_text("PEPE-USD")
    again.wait_for_function(f"new Date({STARTS}?.[1]) - new Date({STARTS}?.[0]) == 3600e3")


def test_times_are_of_the_zone_that_is_chosen(house: Lakehouse, view: View) -> None:
    page = view(zone="Asia/Tokyo")
    charts(page)
    expect(page.locator(".m h1")).to_contain_text("UTC")
    utc = page.evaluate(f"{STARTS}[0]")
    page.get_by_role("combobox", name="Time zone").click()
    # The viewer's own comes right behind UTC.
    page.get_by_role("option").nth(1).click()
    expect(page.locator(".m h1")).to_contain_text("JST")
    page.wait_for_function(f"new Date({STARTS}[0]) - new Date('{utc}') == 9 * 3600e3")


def test_a_quarantined_trade_is_shown_as_it_came(house: Lakehouse, view: View) -> None:
    page = view("?tab=Quality")
    payloads = page.locator("td.payload")
    expect(payloads).to_have_count(REJECTS_SHOWN)
    choose(page, "Reason", "invalid_side")
    expect(payloads.filter(has_not_text='"side": "hold"')).to_have_count(0)
    choose(page, "Reason", "invalid_price")
    # Not as markup.
    expect(payloads.filter(has_text='"price": "<b>1</b>"').first).to_be_visible()


def test_the_pipeline_shows_lag_runs_sessions_and_gaps(house: Lakehouse, view: View) -> None:
    elsewhere(lambda: house.receive(match(1), match(2)))
    page = view("?tab=Pipeline")
    charts(page)
    expect(page.locator("tr", has_text="gold.ohlc_1m").locator("td").nth(1)).to_have_text("2")
    expect(page.locator("tr", has_text="silence")).to_contain_text("5,780")
    expect(page.locator("tr", has_text="absent")).to_contain_text("ETH-USD")
    expect(page.locator("tr", has_text="build").first).to_contain_text("success")


def test_where_nothing_is_built_it_says_what_to_run(database: Database, view: View) -> None:
    page = view("?tab=Quality")
    for tab in ("Quality", "Pipeline", "Market"):
        page.get_by_role("tab", name=tab).click()
        expect(page.locator(".note code").first).to_contain_text("medallion")
        expect(page.locator(".m table")).to_have_count(0)


def test_new_trades_appear_without_a_reload(house: Lakehouse, view: View) -> None:
    page = view()
    charts(page)
    page.evaluate("window.opened = true")
    new = match(100_000, price="91234.56", time=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}")
    elsewhere(lambda: (house.receive(new), house.dbt("build")))
    expect(page.locator(".tile.large")).to_contain_text("91,234.56")
    assert page.evaluate("window.opened")


def test_a_database_that_is_away_is_told_and_what_was_read_stays(
    house: Lakehouse, server: Server, view: View
) -> None:
    page = view()
    price = page.locator(".tile.large")
    expect(price).to_contain_text("BTC-USD")
    elsewhere(server.embedded.stop)
    try:
        expect(page.locator(".note.away")).to_contain_text("can't be reached")
        expect(price).to_contain_text(last := price.inner_text().split()[-1])
    finally:
        elsewhere(server.embedded.start)
    expect(page.locator(".note.away")).to_have_count(0)
    expect(price).to_contain_text(last)


def test_each_tab_fits_a_laptop_in_light_and_dark(
    house: Lakehouse, view: View, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = Path(request.config.getoption("--screenshots", default=None) or tmp_path)
    page = view()
    for tab, scheme in SCHEMES.items():
        page.emulate_media(color_scheme=scheme)
        page.get_by_role("tab", name=tab).click()
        expect(page.locator(".stApp")).to_have_css("background-color", BACKGROUNDS[scheme])
        page.get_by_role("tabpanel", name=tab).locator(".main-svg").first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        page.wait_for_timeout(300)
        assert len(page.screenshot(path=folder / f"{tab.lower()}.png")) < 200_000
