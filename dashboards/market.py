"""The market page, a script of Streamlit: `medallion dashboard` starts it.

It runs once for each viewer and each click; the tab that is open runs again by itself. What was
read is shared by all viewers for some seconds.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from dashboards import queries, tabs
from dashboards.formats import TIME_ZONES
from dashboards.pieces import block, note
from dashboards.queries import NotBuiltError
from warehouse.settings import Role, WarehouseError, WarehouseSettings

REFRESH_SECONDS: Final = 5
STYLE: Final = Path(__file__).with_name("style.css")
READERS: Final[dict[str, Callable[..., Awaitable[Any]]]] = {
    "products": queries.read_products,
    "Market": queries.read_market,
    "Quality": queries.read_quality,
    "Pipeline": queries.read_pipeline,
}
ICON: Final = Path(__file__).with_name("icon.svg")
TABS: Final = ("Market", "Quality", "Pipeline")


# Shorter than the refresh: each refresh of a viewer reads anew, those of others meanwhile do not.
@st.cache_data(ttl=REFRESH_SECONDS - 1, max_entries=256, show_spinner=False)
def _read_anew(what: str, *of: str | None) -> Any:
    # Settings, too: a server that was started anew may have another port.
    connection = WarehouseSettings().connection(Role.READER)
    return queries.read(connection, READERS[what], *of)


def _read(place: DeltaGenerator, what: str, *of: str | None) -> Any:
    """Read for a tab. While the database is away, say so and return what was read last, if any.

    What is wrong is said once, at `place`, however much is read.
    """
    shown: dict[tuple[str | None, ...], Any] = st.session_state.setdefault("shown", {})
    try:
        shown[what, *of] = _read_anew(what, *of)
    except NotBuiltError as missing:
        place.html(block(note(str(missing))))
        return None
    except WarehouseError as error:
        again = f"This page looks again every {REFRESH_SECONDS} s."
        place.html(block(note(f"The database is away. {error} {again}", "away")))
    return shown.get((what, *of))


@st.fragment(run_every=REFRESH_SECONDS)
def _market(zone: ZoneInfo) -> None:
    place = st.empty()
    products = _read(place, "products")
    if products is None:
        return
    if not products:
        place.html(block(note("There are no candles yet. Run `medallion transform`.")))
        return
    choice, length = st.columns([1, 4], gap="medium")
    with choice:
        product_id = st.selectbox(
            "Product", products, key="product", bind="query-params", label_visibility="collapsed"
        )
    with length:
        interval = st.segmented_control(
            "Interval", queries.INTERVALS, default="5m", required=True, key="interval",
            bind="query-params", label_visibility="collapsed",
        )  # fmt: skip
    market = _read(place, "Market", product_id, interval)
    if market is not None:
        tabs.show_market(market, zone, product_id, interval)


@st.fragment(run_every=REFRESH_SECONDS)
def _quality(zone: ZoneInfo) -> None:
    quality = _read(st.empty(), "Quality", st.session_state.get("reason"))
    if quality is not None:
        tabs.show_quality(quality, zone, _choose_reason)


def _choose_reason(reasons: Sequence[str]) -> None:
    st.pills("Reason", reasons, key="reason", label_visibility="collapsed")


@st.fragment(run_every=REFRESH_SECONDS)
def _pipeline(zone: ZoneInfo) -> None:
    pipeline = _read(st.empty(), "Pipeline")
    if pipeline is not None:
        tabs.show_pipeline(pipeline, zone)


@st.fragment(run_every=REFRESH_SECONDS)
def _clock(zone: ZoneInfo) -> None:
    now = datetime.now(UTC).astimezone(zone)
    st.html(block(f"<h1>medallion<small class='quiet'>{now:%a %d %b %Y, %H:%M:%S %Z}</small></h1>"))


def _time_zone() -> ZoneInfo:
    own = st.context.timezone
    names = list(dict.fromkeys(["UTC", *([own] if own else []), *TIME_ZONES]))
    name = st.selectbox(
        "Time zone", names, key="zone", bind="query-params", label_visibility="collapsed"
    )
    return ZoneInfo(name)


def page() -> None:
    """Draw the page."""
    st.set_page_config(page_title="medallion", page_icon=ICON, layout="wide")
    st.html(STYLE)
    head, choice = st.columns([6, 1], vertical_alignment="center")
    with choice:
        zone = _time_zone()
    with head:
        _clock(zone)
    opened = st.tabs(TABS, key="tab", bind="query-params")
    for tab, show in zip(opened, (_market, _quality, _pipeline), strict=True):
        if tab.open:
            with tab:
                show(zone)


if __name__ == "__main__":
    page()
