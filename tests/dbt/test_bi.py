"""What BI tools are given: the measures of `dashboards/*.md`, and the metrics of dbt."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, Server
from tests.dbt.conftest import PROJECT, Dbt, Lakehouse, match, product

pytestmark = pytest.mark.postgres18_only

TOOLS = ("powerbi", "metabase")
MEASURES = {"Latest price", "24 h volume", "24 h change", "Day over day", "Quality pass rate"}
CHOICE = re.compile(r"\[\[(.*?)\]\]")
COLUMN = re.compile(r"'?(\w+)'?\[(\w+)\]")
DAYS = 10
START = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(days=DAYS)
# Between two trades. One product has none in the last days.
MINUTES = {"BTC-USD": 7, "ETH-USD": 11, "PEPE-USD": 4500}
MISSING = ("ETH-USD", 500)


def sections(tool: str) -> dict[str, dict[str, str]]:
    """Return the code under each heading of a document, by its language."""
    parts = re.split(r"^#+ (.+)$", (ROOT / f"dashboards/{tool}.md").read_text(), flags=re.M)[1:]
    return {
        heading: dict(re.findall(r"^```(\w+)\n(.*?)^```$", text, flags=re.M | re.S))
        for heading, text in zip(parts[::2], parts[1::2], strict=True)
    }


def trades() -> list[dict[str, Any]]:
    """Return trades of some days, whose prices rise and fall."""
    return [
        {
            "product_id": product_id,
            "trade_id": number,
            "time": START + timedelta(minutes=number * minutes, seconds=number % 60),
            "price": Decimal(100 + number * number % 37) / (10**8 if minutes > 1000 else 1),
            "size": Decimal(number % 9 + 1) / 4,
        }
        for product_id, minutes in MINUTES.items()
        for number in range(1, DAYS * 1440 // minutes)
        if (product_id, number) != MISSING
    ]


@pytest.fixture(scope="module")
def market(server: Server, dbt: Dbt) -> Lakehouse:
    """A lakehouse of these trades, built twice, and of some that can't be typed: a check warns."""
    lakehouse = Lakehouse(server.fresh_database(), dbt)
    frames = [
        match(
            trade["trade_id"],
            product_id=trade["product_id"],
            time=f"{trade['time']:%Y-%m-%dT%H:%M:%S.%fZ}",
            price=f"{trade['price']:f}",
            size=f"{trade['size']:f}",
        )
        for trade in sorted(trades(), key=lambda trade: trade["time"])
    ]
    bad = [match(10**6 + n, price="abc") for n in range(100)]
    lakehouse.list_products(*map(product, MINUTES))
    lakehouse.receive(*frames[:-1], *bad)
    lakehouse.record_gap(f"{{[{MISSING[1]},{MISSING[1]}]}}", product_id=MISSING[0])
    assert lakehouse.build().warned
    lakehouse.receive(frames[-1])
    lakehouse.build()
    return lakehouse


def read(lakehouse: Lakehouse, sql: str) -> list[dict[str, Any]]:
    rows = lakehouse.database.fetch(sql, role="medallion_reader")
    return [dict(row) for row in rows]


def by_product() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    for product_id in MINUTES:
        yield product_id, [trade for trade in trades() if trade["product_id"] == product_id]


def quarter_hour(time: datetime) -> datetime:
    return time.replace(minute=time.minute // 15 * 15, second=0)


def last_day() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield the trades of the quarter-hours that began in the 24 hours to the newest minute."""
    end = max(trade["time"] for trade in trades()).replace(second=0) + timedelta(minutes=1)
    for product_id, traded in by_product():
        recent = [t for t in traded if quarter_hour(t["time"]) >= end - timedelta(days=1)]
        if recent:
            yield product_id, recent


def change(before: Decimal, after: Decimal) -> Decimal:
    return 100 * (after - before) / before


def latest_price() -> dict[Any, Any]:
    return {product_id: traded[-1]["price"] for product_id, traded in by_product()}


def volume_24h() -> dict[Any, Any]:
    return {product_id: sum(trade["size"] for trade in traded) for product_id, traded in last_day()}


def change_24h() -> dict[Any, Any]:
    return {
        product_id: round(change(traded[0]["price"], traded[-1]["price"]), 4)
        for product_id, traded in last_day()
    }


def day_over_day() -> dict[Any, Any]:
    changes: dict[Any, Any] = {}
    for product_id, traded in by_product():
        closes: dict[date, Decimal] = {trade["time"].date(): trade["price"] for trade in traded}
        days = sorted(closes)
        changes[product_id, days[0]] = None
        for before, day in pairwise(days):
            changes[product_id, day] = change(closes[before], closes[day])
    return changes


COMPUTED = {
    "Latest price": latest_price,
    "24 h volume": volume_24h,
    "24 h change": change_24h,
    "Day over day": day_over_day,
}


def test_both_documents_have_every_measure() -> None:
    for tool in TOOLS:
        assert {heading for heading, code in sections(tool).items() if "sql" in code} >= MEASURES
    assert {heading for heading, code in sections("powerbi").items() if "dax" in code} == MEASURES


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("measure", COMPUTED)
def test_a_measure_equals_what_the_trades_say(market: Lakehouse, tool: str, measure: str) -> None:
    sql = sections(tool)[measure]["sql"]
    found = [tuple(row.values()) for row in read(market, CHOICE.sub("", sql))]
    assert {key[0] if len(key) == 1 else tuple(key): value for *key, value in found} == {
        key: None if value is None else pytest.approx(value, rel=Decimal("1e-12"))
        for key, value in COMPUTED[measure]().items()
    }
    if CHOICE.search(sql):
        chosen = CHOICE.sub(r"\1", sql).replace("{{product}}", "'ETH-USD'")
        assert {row["product_id"] for row in read(market, chosen)} == {"ETH-USD"}


@pytest.mark.parametrize("tool", TOOLS)
def test_the_pass_rate_equals_what_the_checks_said(market: Lakehouse, tool: str) -> None:
    (found,) = read(market, sections(tool)["Quality pass rate"]["sql"])
    results = read(market, "select passed from ops.dq_check_results where status <> 'skipped'")
    passed = [row["passed"] for row in results]
    assert 0 < passed.count(False) < len(passed)
    assert float(found["pass_rate_24h"]) == pytest.approx(passed.count(True) / len(passed))


def test_statements_bring_one_snapshot_and_one_week(market: Lakehouse) -> None:
    movers, candles = (
        read(market, sections("powerbi")[table]["sql"]) for table in ("movers", "candles")
    )
    assert len(market.rows("select distinct as_of from gold.top_movers")) == 2
    assert len({row["as_of_utc"] for row in movers}) == 1
    buckets = {(t["product_id"], quarter_hour(t["time"]).replace(tzinfo=None)) for t in trades()}
    newest = max(bucket for _, bucket in buckets)
    assert {(row["product_id"], row["bucket_utc"]) for row in candles} == {
        (product_id, bucket)
        for product_id, bucket in buckets
        if bucket > newest - timedelta(days=7)
    }


def test_what_dax_and_relations_name_is_there(market: Lakehouse) -> None:
    known: dict[str, set[str]] = defaultdict(set)
    for column in market.rows(
        "select table_name, column_name from information_schema.columns where table_schema = 'gold'"
    ):
        known[column["table_name"]].add(column["column_name"])
    for table in ("movers", "candles"):
        known[table] = set(read(market, sections("powerbi")[table]["sql"])[0])
    for tool in TOOLS:
        named = COLUMN.findall((ROOT / f"dashboards/{tool}.md").read_text())
        assert named
        assert [(t, column) for t, column in named if column not in known[t]] == []
    removed = re.findall(r"REMOVEFILTERS \( (\w+) \)", (ROOT / "dashboards/powerbi.md").read_text())
    assert removed
    assert set(removed) <= set(known)


def test_each_relation_leads_to_exactly_one_row(market: Lakehouse) -> None:
    statements = {
        table: f"({sections('powerbi')[table]['sql']})" for table in ("movers", "candles")
    }
    for tool in TOOLS:
        text = (ROOT / f"dashboards/{tool}.md").read_text()
        relations = re.findall(r"^\| `(\w+)\[(\w+)\]` \| `(\w+)\[(\w+)\]` \|$", text, flags=re.M)
        assert relations
        for many, foreign_key, one, key in relations:
            (counted,) = market.rows(
                f"select count(*) as rows, "
                f"(select count(*) from {statements.get(many, f'gold.{many}')} as many) as many "
                f"from {statements.get(many, f'gold.{many}')} as many "
                f"inner join gold.{one} as one on many.{foreign_key} = one.{key}"
            )
            assert counted["rows"] == counted["many"] > 0, (many, one)


def test_metrics_equal_the_sql_that_they_stand_for(
    market: Lakehouse, dbt: Dbt, tmp_path: Path
) -> None:
    for name in ("dbt_project.yml", "packages.yml", "profiles.yml"):
        shutil.copy(PROJECT / name, tmp_path)
    (tmp_path / "target").mkdir()
    shutil.copy(dbt.target / "semantic_manifest.json", tmp_path / "target")
    metrics = ["volume", "trade_count", "vwap", "price_change_pct", "completeness"]
    table = tmp_path / "metrics.csv"
    query = ["--metrics", ",".join(metrics), "--group-by", "product,metric_time__week"]
    done = subprocess.run(
        [Path(sys.executable).with_name("mf"), "query", *query, "--csv", table],
        cwd=tmp_path,
        env={**os.environ, **market.transform.environment()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with table.open() as lines:
        found = {
            (row["product"], row["metric_time__week"][:10]): [float(row[name]) for name in metrics]
            for row in csv.DictReader(lines)
        }
    weeks = market.rows(
        """
        select
            product_id,
            week_start::text as week,
            sum(kpis.volume) as volume,
            sum(kpis.trades) as trade_count,
            sum(kpis.quote_volume) / sum(kpis.volume) as vwap,
            (array_agg(kpis.open order by day))[1] as open,
            (array_agg(kpis.close order by day desc))[1] as close,
            sum(complete.trades) / sum(complete.trades + complete.missing) as completeness
        from gold.daily_kpis as kpis
        inner join gold.trade_completeness as complete using (product_id, day)
        inner join gold.dim_dates using (day)
        group by product_id, week_start
        """
    )
    for row in weeks:
        row["price_change_pct"] = change(row["open"], row["close"])
    assert found == {
        (row["product_id"], row["week"]): pytest.approx([float(row[name]) for name in metrics])
        for row in weeks
    }
    assert min(row["completeness"] for row in weeks) < 1
