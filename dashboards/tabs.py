"""The three tabs: what was read, drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Final, TypeVar
from zoneinfo import ZoneInfo

import streamlit as st

from dashboards import charts, formats
from dashboards.pieces import (
    STATUS_CLASSES,
    Cell,
    Check,
    Heat,
    block,
    heat_map,
    note,
    strips,
    table,
    tile,
    tiles,
    title,
)
from dashboards.queries import (
    Completeness,
    DailyChange,
    Market,
    Mover,
    Pipeline,
    Quality,
    Reconciliation,
    Reject,
    Run,
    Verdict,
)

PERIODS: Final = ("1h", "24h", "7d")
MOVERS_SHOWN: Final = 12
PROMISES: Final = {
    "bronze.coinbase_trades_raw": timedelta(minutes=10),
    "gold.ohlc_1m": timedelta(minutes=15),
}
"""As the checks bronze_freshness and ohlc_1m_is_recent have it."""
Day = TypeVar("Day", DailyChange, Completeness)
VERDICT_ORDER: Final = ("error", "fail", "warn", "skipped", "pass")


def show_market(market: Market, zone: ZoneInfo, product_id: str, interval: str) -> None:
    """Draw a product's price, the movers, and the days of the largest products."""
    day = market.last_day
    if day is None or not market.candles:
        st.html(block(note(f"No candles of {product_id} yet. Run `medallion transform`.")))
        return
    decimals = formats.tick_decimals([day.last, day.open, day.high, day.low])
    base, quote = product_id.rsplit("-", 1)
    now = datetime.now(UTC)
    st.html(
        block(
            tiles(
                tile(
                    f"{product_id}, last price",
                    formats.price(day.last, decimals),
                    f"{formats.change(day.change)} in 24 h",
                    direction(day.change),
                    large=True,
                ),
                tile("24 h high", formats.price(day.high, decimals)),
                tile("24 h low", formats.price(day.low, decimals)),
                tile("24 h vwap", formats.average(day.vwap, decimals)),
                tile("24 h volume", formats.amount(day.volume), base),
                tile("24 h turnover", formats.amount(day.quote_volume), quote),
                tile("24 h trades", f"{day.trade_count:,}"),
                tile("newest minute", _clock(day.as_of, zone), formats.age(day.as_of, now)),
            )
        )
    )
    chart, movers = st.columns([3.4, 1], gap="medium")
    with chart:
        # A day is one of UTC, wherever it is looked at.
        candle_zone = ZoneInfo("UTC") if interval == "1d" else zone
        figure = charts.candlesticks(market.candles, decimals, candle_zone, product_id, interval)
        st.plotly_chart(figure, key="candles", config=charts.CONFIG)
    with movers:
        period = st.segmented_control(
            "Top movers", PERIODS, default="24h", required=True, key="period"
        )
        st.html(block(_movers([mover for mover in market.movers if mover.period == period])))
    st.html(
        block(
            title("Daily changes", "of days of UTC, largest turnover first"),
            _days(
                market.daily_changes,
                lambda change: Heat(
                    formats.change(change.price_change_pct),
                    change.price_change_pct / 6,
                    f"{change.product_id} {change.day}: {change.open:f} to {change.close:f}",
                ),
            ),
        )
    )


def show_quality(
    quality: Quality, zone: ZoneInfo, choose_reason: Callable[[Sequence[str]], None]
) -> None:
    """Draw the checks, quarantine, completeness, reconciliation and arrivals."""
    if not quality.runs:
        st.html(block(note("Nothing has been checked yet. Run `medallion transform`.")))
        return
    st.html(block(*_checks(quality.runs, quality.verdicts, zone)))

    st.html(
        block(title("Quarantine", "trades that can't enter silver, by reason and time of arrival"))
    )
    if quality.reject_counts:
        figure = charts.reject_bars(quality.reject_counts, zone)
        st.plotly_chart(figure, key="rejects", config=charts.CONFIG)
        choose_reason(sorted({count.reason for count in quality.reject_counts}))
        st.html(block(_rejects(quality.rejects, zone)))
    else:
        st.html(block(note("Quarantine is empty: every trade that came could be typed.")))

    st.html(
        block(
            title("Completeness", "share of each day's trades that are here; days of UTC"),
            _days(quality.completeness, _completeness, "pass"),
        )
    )
    left, right = st.columns(2, gap="large")
    with left:
        arrivals = (
            (
                Cell(arrival.product_id or "no product"),
                Cell(f"{arrival.received:,}", "n"),
                Cell(f"{arrival.duplicates:,}", "n"),
                Cell(f"{arrival.late:,}", "n"),
                Cell(f"{arrival.repaired:,}", "n"),
                Cell(f"{arrival.quarantined:,}", "n warn" if arrival.quarantined else "n"),
            )
            for arrival in quality.arrivals
        )
        columns = ("received", "duplicates", "late", "by REST", "quarantined")
        st.html(
            block(
                title("Duplicates and late arrivals", "of the newest 20,000 frames"),
                table(_columns("product", right=columns), arrivals),
            )
        )
    with right:
        st.html(
            block(
                title("Candles against the exchange's", "of the newest 3,000 compared"),
                _reconciliation(quality.reconciliation, zone),
            )
        )


def show_pipeline(pipeline: Pipeline, zone: ZoneInfo) -> None:
    """Draw throughput, lag, runs, sessions and gaps."""
    if not pipeline.layers and not pipeline.sessions:
        told = "Nothing has arrived yet. Run `medallion ingest` to record trades."
        st.html(block(note(told)))
        return
    now = datetime.now(UTC)
    behind = max((layer.frames_behind for layer in pipeline.layers), default=0)
    whole_minutes = pipeline.rates[:-1]
    newest_rate = whole_minutes[-1].trades_per_second if whole_minutes else 0.0
    at_work = [session for session in pipeline.sessions if session.ended_at is None]
    arrived = next((layer.received_at for layer in pipeline.layers), None)
    st.html(
        block(
            tiles(
                tile("trades per second", f"{newest_rate:,.1f}", "newest whole minute"),
                tile("newest frame", formats.age(arrived, now)),
                tile("frames that gold has not read", f"{behind:,}"),
                tile("open gaps", f"{pipeline.open_gaps:,}"),
                tile("open connections", f"{len(at_work):,}"),
            )
        )
    )
    rate, runs = st.columns(2, gap="large")
    with rate:
        st.html(block(title("Trades per second", "by the exchange's clock, newest 6 hours")))
        if whole_minutes:
            figure = charts.trade_rates(whole_minutes, zone)
            st.plotly_chart(figure, key="rates", config=charts.CONFIG)
        else:
            st.html(block(note("There are no candles yet. Run `medallion transform`.")))
    with runs:
        st.html(block(title("Runs", f"how long each of the newest {len(pipeline.runs)} took")))
        if pipeline.runs:
            figure = charts.run_durations(pipeline.runs, zone)
            st.plotly_chart(figure, key="runs", config=charts.CONFIG)
        else:
            st.html(block(note("Nothing has been built yet. Run `medallion transform`.")))
    left, right = st.columns(2, gap="large")
    with left:
        st.html(block(*_layers(pipeline, now)))
    with right:
        st.html(block(*_runs(pipeline.runs[::-1][:8], zone)))
    st.html(block(*_sessions(pipeline, zone), *_gaps(pipeline, zone)))


def direction(change: Decimal) -> str:
    """Return the class that colours a change."""
    return "up" if change > 0 else "down" if change < 0 else "quiet"


def _clock(moment: datetime | None, zone: ZoneInfo) -> str:
    """Write a moment by the zone's clock; with its day where it is not of the last 20 hours."""
    if moment is None:
        return formats.NONE
    near = abs(datetime.now(UTC) - moment) < timedelta(hours=20)
    return (
        f"{moment.astimezone(zone):%H:%M:%S}" if near else f"{moment.astimezone(zone):%d %b %H:%M}"
    )


def _columns(*left: str, right: Iterable[str] = (), end: Iterable[str] = ()) -> list[Cell]:
    """Name a table's columns: text, then numbers, then text again."""
    return [*map(Cell, left), *(Cell(name, "n") for name in right), *map(Cell, end)]


def _movers(movers: Sequence[Mover]) -> str:
    if not movers:
        return note("Nothing moved in this time. Run `medallion transform` for new trades.")
    rows = (
        (
            Cell(mover.product_id, "t"),
            Cell(formats.price(mover.close, formats.tick_decimals([mover.close])), "n"),
            Cell(formats.change(mover.price_change_pct), f"n {direction(mover.price_change_pct)}"),
        )
        for mover in movers[:MOVERS_SHOWN]
    )
    return table(_columns("product", right=("last", "change")), rows)


def _days(of: Sequence[Day], heat: Callable[[Day], Heat], cold: str = "up") -> str:
    """Draw a calendar: a row for each product, a column for each day that any of them has."""
    columns = sorted({day.day for day in of})
    rows: dict[str, dict[date, Heat]] = {}
    for day in of:
        rows.setdefault(day.product_id, {})[day.day] = heat(day)
    return heat_map(
        [f"{day:%d %b}" for day in columns],
        [(name, [cells.get(day) for day in columns]) for name, cells in rows.items()],
        cold,
    )


def _completeness(day: Completeness) -> Heat:
    told = f"{day.product_id} {day.day}: {day.trades:,} trades, {day.missing:,} missing"
    # One in a thousand is much.
    lack = min(1000 * (1 - day.share_complete), Decimal(1))
    return Heat(
        formats.share(day.share_complete),
        -lack if day.missing > 0 else Decimal("0.4"),
        f"{told}, {day.repaired:,} fetched over REST",
    )


def _checks(runs: Sequence[Run], verdicts: Sequence[Verdict], zone: ZoneInfo) -> list[str]:
    checked = [run for run in runs if run.checks]
    by_check: dict[str, dict[str, Verdict]] = {}
    for verdict in verdicts:
        by_check.setdefault(verdict.check_name, {})[verdict.run_id] = verdict
    newest = [
        next(of_runs[run.run_id] for run in reversed(runs) if run.run_id in of_runs)
        for of_runs in by_check.values()
    ]
    newest.sort(key=lambda v: (VERDICT_ORDER.index(v.status), v.table_name, v.check_name))
    counts = dict.fromkeys(VERDICT_ORDER, 0)
    for verdict in newest:
        counts[verdict.status] += 1
    failing = [verdict for verdict in newest if verdict.status not in {"pass", "skipped"}]
    histories = [
        Check(
            verdict.check_name,
            verdict.description or "",
            [
                (found.status if found else None, _strip_title(run, found, zone))
                for run in checked
                for found in [by_check[verdict.check_name].get(run.run_id)]
            ],
        )
        for verdict in newest
    ]
    return [
        tiles(
            tile("checks", f"{len(newest):,}"),
            tile("pass", f"{counts['pass']:,}"),
            tile("warn", f"{counts['warn']:,}"),
            tile("fail", f"{counts['fail'] + counts['error']:,}"),
            tile("newest run", _clock(checked[-1].start_ts, zone) if checked else formats.NONE),
        ),
        title("Checks", f"over {len(checked)} runs, the newest on the right"),
        _failing(failing) if failing else "",
        strips(histories),
    ]


def _failing(verdicts: Sequence[Verdict]) -> str:
    rows = (
        (
            Cell(verdict.status, f"t {STATUS_CLASSES.get(verdict.status, 'quiet')}"),
            Cell(verdict.check_name, "t"),
            Cell(f"{verdict.failures:,}" if verdict.failures else "", "n"),
            Cell(verdict.description or "", "quiet"),
        )
        for verdict in verdicts
    )
    columns = _columns("verdict", "check", right=("failing rows",), end=("what should be",))
    return table(columns, rows)


def _strip_title(run: Run, verdict: Verdict | None, zone: ZoneInfo) -> str:
    return f"{_clock(run.start_ts, zone)} {verdict.status if verdict else 'not run'}"


def _rejects(rejects: Sequence[Reject], zone: ZoneInfo) -> str:
    rows = (
        (
            Cell(_clock(reject.received_at, zone), "t"),
            Cell(reject.product_id or formats.NONE, "t"),
            Cell(reject.trade_id or formats.NONE, "t"),
            Cell(", ".join(reject.reject_reasons), "down"),
            Cell(reject.payload, "payload"),
        )
        for reject in rejects
    )
    return table(_columns("received", "product", "trade id", "reasons", "what came"), rows)


def _reconciliation(found: Sequence[Reconciliation] | None, zone: ZoneInfo) -> str:
    if not found:
        return note("No candle has been compared yet. Run `medallion reconcile`, then a build.")
    rows = (
        (
            Cell(row.product_id, "t"),
            Cell(row.granularity, "t"),
            Cell(f"{row.agree:,}", "n"),
            Cell(f"{row.differ:,}", "n fail" if row.differ else "n"),
            Cell(f"{row.not_whole:,}", "n"),
            Cell(_clock(row.newest, zone), "n"),
        )
        for row in found
    )
    return table(
        _columns("product", "candle", right=("agree", "differ", "not whole", "newest")), rows
    )


def _layers(pipeline: Pipeline, now: datetime) -> list[str]:
    newest_candle = pipeline.rates[-1].minute + timedelta(minutes=1) if pipeline.rates else None
    rows = []
    for layer in pipeline.layers:
        newest = newest_candle if layer.table_name == "gold.ohlc_1m" else layer.received_at
        promise = PROMISES.get(layer.table_name)
        kept = promise is None or (newest is not None and now - newest <= promise)
        rows.append(
            (
                Cell(layer.table_name, "t"),
                Cell(f"{layer.frames_behind:,}", "n"),
                Cell(formats.length(layer.time_behind), "n"),
                Cell(formats.age(newest, now), "n" if kept else "n warn"),
                Cell(f"within {formats.length(promise)}" if promise else "", "n quiet"),
            )
        )
    columns = ("frames behind", "time behind", "newest", "promise")
    return [
        title("Lag and freshness", "behind bronze, and against what is promised"),
        table(_columns("table", right=columns), rows),
    ]


def _runs(runs: Sequence[Run], zone: ZoneInfo) -> list[str]:
    rows = (
        (
            Cell(_clock(run.start_ts, zone), "t"),
            Cell(run.pipeline_name, "t"),
            Cell(run.status, f"t {STATUS_CLASSES.get(run.status, 'quiet')}"),
            Cell(formats.length(run.end_ts - run.start_ts if run.end_ts else None), "n"),
            Cell(f"{run.records_processed:,}", "n"),
            Cell((run.error_message or "")[:160], "quiet"),
        )
        for run in runs
    )
    columns = _columns("began", "command", "status", right=("took", "new frames"), end=("",))
    return [title("Newest runs"), table(columns, rows)]


def _sessions(pipeline: Pipeline, zone: ZoneInfo) -> list[str]:
    rows = (
        (
            Cell(session.source, "t"),
            Cell(_clock(session.started_at, zone), "t"),
            Cell(_clock(session.ended_at, zone) if session.ended_at else "open", "t"),
            Cell(f"{session.frames:,}", "n"),
            Cell(f"{session.trades:,}", "n"),
            Cell(session.end_reason or "", "quiet"),
            Cell(_some(session.products), "quiet", ", ".join(session.products)),
        )
        for session in pipeline.sessions
    )
    columns = _columns(
        "source", "began", "ended", right=("frames", "trades"), end=("why it ended", "products")
    )
    return [title("Sessions", "connections to Coinbase"), table(columns, rows)]


def _some(products: Sequence[str], many: int = 6) -> str:
    rest = f" and {len(products) - many} more" if len(products) > many else ""
    return ", ".join(products[:many]) + rest


def _gaps(pipeline: Pipeline, zone: ZoneInfo) -> list[str]:
    heading = title("Gaps", "trades that the feed did not bring, and what became of them")
    if not pipeline.gaps:
        return [heading, note("There is none: the feed brought every trade.")]
    rows = (
        (
            Cell(gap.product_id, "t"),
            Cell(gap.status, f"t {STATUS_CLASSES.get(gap.status, 'quiet')}"),
            Cell(gap.found_by, "t"),
            Cell(_clock(gap.found_at, zone), "t"),
            Cell(_clock(gap.closed_at, zone), "t"),
            Cell(f"{gap.first_id} to {gap.last_id}", "n"),
            Cell(f"{gap.missing:,}", "n warn" if gap.missing else "n"),
            Cell(f"{gap.repaired:,}", "n"),
        )
        for gap in pipeline.gaps
    )
    columns = _columns(
        "product", "status", "found by", "found", "closed", right=("ids", "missing", "fetched")
    )
    return [heading, table(columns, rows)]
