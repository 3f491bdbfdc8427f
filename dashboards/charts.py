"""The page's charts. Colours are of middle tone, so that they read on light and dark alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Final
from zoneinfo import ZoneInfo

import plotly.graph_objects as go

from dashboards import formats
from dashboards.queries import Candle, Rate, RejectCount, Run

# Blue and vermillion are told apart by whoever can't tell red from green. style.css has them, too.
UP: Final = "#2f86c9"
DOWN: Final = "#d9662f"
VWAP: Final = "#a57bd0"
QUIET: Final = "#8b97a1"
GOOD: Final = "#4fa08f"
REASONS: Final = ("#d9662f", "#2f86c9", "#d6a021", "#4fa08f", "#a57bd0", "#c46a9b", "#8b97a1")
STATUSES: Final = {"success": GOOD, "failed": DOWN, "running": QUIET}
CONFIG: Final = {"displayModeBar": False, "displaylogo": False}


def wall_clock(moment: datetime, zone: ZoneInfo) -> datetime:
    """Return what a clock in the zone shows: Plotly knows no time zones."""
    return moment.astimezone(zone).replace(tzinfo=None)


def _figure(height: int, name: str) -> go.Figure:
    figure = go.Figure()
    figure.update_layout(
        height=height,
        margin={"l": 0, "r": 0, "t": 8, "b": 0},
        hovermode="x unified",
        hoverlabel={"font": {"size": 12}},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        # While it stays the same, a refresh keeps what the user has zoomed to.
        uirevision=name,
        bargap=0.25,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
    )
    figure.update_yaxes(side="right", zeroline=False, gridcolor="rgba(128,140,150,0.16)")
    figure.update_xaxes(showgrid=False, zeroline=False)
    return figure


def candlesticks(
    candles: Sequence[Candle], decimals: int, zone: ZoneInfo, product_id: str, interval: str
) -> go.Figure:
    """Draw candles with their vwap, and the volume below."""
    figure = _figure(470, f"{product_id} {interval}")
    starts = [wall_clock(candle.start, zone) for candle in candles]
    colours = [UP if candle.close >= candle.open else DOWN for candle in candles]
    base, quote = product_id.rsplit("-", 1)
    figure.add_candlestick(
        x=starts,
        open=[float(candle.open) for candle in candles],
        high=[float(candle.high) for candle in candles],
        low=[float(candle.low) for candle in candles],
        close=[float(candle.close) for candle in candles],
        increasing={"line": {"color": UP, "width": 1}, "fillcolor": UP},
        decreasing={"line": {"color": DOWN, "width": 1}, "fillcolor": DOWN},
        name=quote,
        showlegend=False,
        text=[
            f"open {formats.price(candle.open, decimals)}<br>"
            f"high {formats.price(candle.high, decimals)}<br>"
            f"low {formats.price(candle.low, decimals)}<br>"
            f"close <b>{formats.price(candle.close, decimals)}</b> "
            f"{formats.change(100 * (candle.close - candle.open) / candle.open)}<br>"
            f"volume {formats.amount(candle.volume)} {base}, {candle.trade_count:,} trades"
            for candle in candles
        ],
        hovertemplate="%{text}<extra></extra>",
    )
    figure.add_scatter(
        x=starts,
        y=[float(candle.vwap) for candle in candles],
        name="vwap",
        line={"color": VWAP, "width": 1},
        opacity=0.85,
        text=[formats.average(candle.vwap, decimals) for candle in candles],
        hovertemplate="vwap %{text}<extra></extra>",
    )
    figure.add_bar(
        x=starts,
        y=[float(candle.volume) for candle in candles],
        yaxis="y2",
        name="volume",
        marker={"color": colours, "opacity": 0.55, "line": {"width": 0}},
        showlegend=False,
        text=[
            f"volume {formats.amount(candle.volume)} {base}, {candle.trade_count:,} trades"
            for candle in candles
        ],
        textposition="none",
        hovertemplate="%{text}<extra></extra>",
    )
    last = candles[-1]
    tick = 10.0**-decimals
    ticks = float(max(c.high for c in candles) - min(c.low for c in candles)) / tick
    # A line between two possible prices would be labelled like one of them.
    steps = {"dtick": tick} if ticks < 8 else {}
    figure.add_hline(y=float(last.close), line={"color": colours[-1], "width": 1, "dash": "dot"})
    figure.add_annotation(
        x=1, xref="paper", xanchor="left", y=float(last.close),
        text=formats.price(last.close, decimals), showarrow=False,
        font={"color": "#ffffff", "size": 11}, bgcolor=colours[-1], borderpad=2,
    )  # fmt: skip
    figure.update_layout(
        yaxis={"domain": [0.24, 1], "tickformat": f",.{decimals}f", "nticks": 8, **steps},
        yaxis2={
            "domain": [0, 0.19], "side": "right", "nticks": 3, "tickformat": "~s",
            "gridcolor": "rgba(128,140,150,0.16)", "zeroline": False,
        },
        xaxis={"rangeslider": {"visible": False}, "anchor": "y2"},
        margin={"l": 0, "r": 8 + 7 * len(formats.price(last.close, decimals)), "t": 22, "b": 0},
    )  # fmt: skip
    return figure


def reject_bars(counts: Sequence[RejectCount], zone: ZoneInfo) -> go.Figure:
    """Draw quarantined trades over time, a colour for each of the most frequent reasons."""
    figure = _figure(220, "quarantine")
    totals: Counter[str] = Counter()
    for count in counts:
        totals[count.reason] += count.trades
    frequent = [reason for reason, _ in totals.most_common(len(REASONS) - 1)]
    series: dict[str, Counter[datetime]] = {reason: Counter() for reason in [*frequent, "others"]}
    for count in counts:
        name = count.reason if count.reason in frequent else "others"
        series[name][wall_clock(count.start, zone)] += count.trades
    starts = {count.start for count in counts}
    for colour, (name, trades) in zip(REASONS, series.items(), strict=False):
        # One bar alone would be as wide as the chart, over an axis of milliseconds.
        times = [f"{time:%d %b %H:%M}" if len(starts) == 1 else time for time in trades]
        if trades:
            marker = {"color": colour, "line": {"width": 0}}
            figure.add_bar(x=times, y=list(trades.values()), name=name, marker=marker)
    figure.update_layout(
        barmode="stack", showlegend=True, legend={"traceorder": "normal"},
        bargap=0.9 if len(starts) == 1 else 0.25,
    )  # fmt: skip
    return figure


def trade_rates(rates: Sequence[Rate], zone: ZoneInfo) -> go.Figure:
    """Draw trades per second over time."""
    figure = _figure(220, "rates")
    figure.add_scatter(
        x=[wall_clock(rate.minute, zone) for rate in rates],
        y=[rate.trades_per_second for rate in rates],
        fill="tozeroy",
        fillcolor="rgba(47,134,201,0.14)",
        line={"color": UP, "width": 1.4},
        hovertemplate="%{y:.1f} trades/s<extra></extra>",
    )
    figure.update_yaxes(rangemode="tozero")
    return figure


def run_durations(runs: Sequence[Run], zone: ZoneInfo) -> go.Figure:
    """Draw how long each run took, in seconds; side by side, for they are seldom evenly apart."""
    figure = _figure(220, "runs")
    ended = [run for run in runs if run.end_ts is not None]
    seconds = [(run.end_ts - run.start_ts).total_seconds() for run in ended if run.end_ts]
    figure.add_bar(
        x=[run.run_id for run in ended],
        y=seconds,
        marker={"color": [STATUSES[run.status] for run in ended], "line": {"width": 0}},
        text=[
            f"{wall_clock(run.start_ts, zone):%d %b %H:%M:%S}  {run.status}<br>"
            f"{run.pipeline_name} took {took:.1f} s, {run.records_processed:,} new frames"
            for run, took in zip(ended, seconds, strict=True)
        ],
        textposition="none",
        hovertemplate="%{text}<extra></extra>",
        # Few bars stay slim.
        width=min(0.75, len(ended) / 24),
    )
    figure.update_layout(hovermode="closest")
    figure.update_xaxes(type="category", showticklabels=False)
    figure.update_yaxes(ticksuffix=" s", rangemode="tozero")
    return figure
