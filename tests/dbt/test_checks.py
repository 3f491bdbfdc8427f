"""Every data-quality check seen to pass on good data, and to fail on the data it is there for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest

from tests.candles import candles
from tests.conftest import Server
from tests.dbt.conftest import NOON, Build, Dbt, Lakehouse, exchange_candle, match, product

pytestmark = pytest.mark.postgres18_only

GOOD = "medallion_good"
CANDLES = ["ohlc_1m", "ohlc_5m", "ohlc_15m", "ohlc_1h", "ohlc_6h", "ohlc_1d"]
ROLL_UPS = {f"{candles}_rolls_up" for candles in CANDLES[1:]}
INVARIANTS = {f"{candles}_invariants" for candles in CANDLES}
IN_HISTORY = "_in_all_history"
ROLL_UPS_IN_HISTORY = {name + IN_HISTORY for name in ROLL_UPS}
AGREES = {"ohlc_1m_agrees_with_trades", "ohlc_1m_agrees_with_trades" + IN_HISTORY}
DATES = {f"{days}_has_its_dates{IN_HISTORY}" for days in ("daily_kpis", "completeness")}
COMPLETENESS = {"completeness_agrees_with_candles"}
FRESHNESS = {"bronze_freshness", "bronze_volume_5m", "silver_freshness", "ohlc_1m_is_recent"}
CATALOGUE = {"catalogue_is_recent"}
# As if no check had passed yet: those of new rows read every row.
UNCHECK = "update ops.model_watermarks set checked = 0;"


def checks_of(dbt: Dbt) -> set[str]:
    nodes = dbt.manifest.nodes.values()
    return {node.name for node in nodes if node.resource_type == "test"}


def severities(dbt: Dbt) -> dict[str, str]:
    nodes = dbt.manifest.nodes.values()
    return {n.name: n.config.severity.lower() for n in nodes if n.resource_type == "test"}


def fresh_frames() -> list[dict[str, object]]:
    """Return trades of the last minutes, of two products, and one of a week before."""
    # Whole minutes ago, so that each trade has the same place in its minute whenever this runs.
    start = (datetime.now(UTC) - NOON).total_seconds() // 60 * 60 - 600
    return [
        match(trade_id, product_id=product_id, price=str(100 + trade_id), at=start + trade_id)
        for product_id in ("BTC-USD", "ETH-USD")
        for trade_id in range(2, 200)
    ] + [match(1, at=-7 * 86400)]


@pytest.fixture(scope="module")
def good_build(server: Server, dbt: Dbt) -> Iterator[Build]:
    """Keep a database of good, fresh, checked data to copy from, and what its build said."""
    lakehouse = Lakehouse(server.fresh_database(), dbt)
    frames = fresh_frames()
    lakehouse.receive(*frames)
    for candle in candles(frames, "ohlc_1m"):
        told = exchange_candle(candle)
        lakehouse.answer(candle.bucket, candle.bucket, told, product_id=candle.product_id)
    hours = (datetime.now(UTC) - NOON) / timedelta(hours=1)
    lakehouse.list_products(product("BTC-USD"), product("ETH-USD"), hour=hours)
    build = lakehouse.dbt("build", "--selector", "full")
    server.maintain(f"create database {GOOD} template {lakehouse.database.name}")
    yield build
    server.maintain(f"drop database {GOOD}")


@pytest.fixture
def good_lakehouse(server: Server, dbt: Dbt, good_build: Build) -> Lakehouse:
    return Lakehouse(server.fresh_database(template=GOOD), dbt)


def test_every_check_passes_on_good_data(good_build: Build, dbt: Dbt) -> None:
    checks = checks_of(dbt)
    said = {name: status for name, status in good_build.statuses.items() if name in checks}
    assert said == dict.fromkeys(checks, "pass")


@dataclass(frozen=True)
class Spoiled:
    """What is done to good data, and the checks that then fail: these and no others."""

    sql: str
    failing: set[str]


def without_constraints(table: str) -> str:
    """Let the table hold what its constraints, the first line of defence, would refuse."""
    return f"""
        do $$
        declare name text;
        begin
            for name in
                select conname from pg_constraint
                where conrelid = '{table}'::regclass and contype in ('p', 'c')
            loop
                execute format('alter table {table} drop constraint %I', name);
            end loop;
            for name in
                select indexrelid::regclass from pg_index
                where indrelid = '{table}'::regclass and indisunique
            loop
                execute format('drop index %s', name);
            end loop;
            for name in
                select attname from pg_attribute
                where attrelid = '{table}'::regclass and attnum > 0 and attnotnull
            loop
                execute format('alter table {table} alter column %I drop not null', name);
            end loop;
        end
        $$;
    """


def one_trade(change: str) -> str:
    """Change a recent trade in silver that is neither the first nor the last of its minute."""
    return (
        without_constraints("silver.coinbase_trades")
        + f"update silver.coinbase_trades set {change} "
        "where (product_id, trade_id) = ('BTC-USD', 77);"
    )


def append(table: str, change: str = "", where: str = "true") -> str:
    """Append copies of the rows of a table, with some of their columns changed."""
    return (
        without_constraints(table)
        + f"create temp table copies as select * from {table} where {where};"
        + (f"update copies set {change};" if change else "")
        + f"insert into {table} select * from copies;"
    )


NO_SUM = """
    update gold.ohlc_1d set volume = volume + 1000;
    update gold.ohlc_6h set quote_volume = quote_volume + 0.1;
    update gold.ohlc_1h set trade_count = trade_count + 1;
    update gold.ohlc_15m set taker_buy_volume = taker_buy_volume - 0.1;
    update gold.ohlc_5m set volume = volume + 1;
"""
SPOILED = {
    "null_price": Spoiled(
        UNCHECK + one_trade("price = null"),
        {"silver_no_null_price", "silver_accounts_for_every_row"},
    ),
    "price_of_zero": Spoiled(
        UNCHECK + one_trade("price = 0"),
        {"silver_no_negative_price", "silver_accounts_for_every_row"} | AGREES,
    ),
    "negative_size": Spoiled(
        UNCHECK + one_trade("size = -size"),
        {"silver_no_negative_size", "silver_accounts_for_every_row"} | AGREES,
    ),
    "unknown_side": Spoiled(
        UNCHECK + one_trade("side = 'hold'"),
        {"silver_side_is_buy_or_sell", "silver_accounts_for_every_row"},
    ),
    "trade_before_its_minute": Spoiled(
        UNCHECK + one_trade("trade_time = trade_minute - interval '1 microsecond'"),
        {"silver_trade_time_is_in_its_minute", "silver_accounts_for_every_row"} | AGREES,
    ),
    "trade_twice_in_the_window": Spoiled(
        UNCHECK + append("silver.coinbase_trades", where="trade_id = 77"),
        {"silver_no_duplicates", "silver_no_duplicates" + IN_HISTORY} | AGREES,
    ),
    "trade_twice_in_history": Spoiled(
        append("silver.coinbase_trades", where="trade_id = 77"),
        {"silver_no_duplicates" + IN_HISTORY, "ohlc_1m_agrees_with_trades" + IN_HISTORY},
    ),
    "trade_lost": Spoiled(
        UNCHECK + "delete from silver.coinbase_trades where trade_id = 77",
        {"silver_accounts_for_every_row"} | AGREES,
    ),
    "trade_both_in_silver_and_in_quarantine": Spoiled(
        UNCHECK + "insert into silver.coinbase_trades_quarantine "
        "select bronze_id, 1, received_at, source, product_id, trade_id::text, "
        "array['invalid_price'], '{}' from silver.coinbase_trades where trade_id = 77 limit 1",
        {"silver_accounts_for_every_row"},
    ),
    "trade_that_bronze_does_not_have": Spoiled(
        UNCHECK + append("silver.coinbase_trades", "trade_id = 1e6", "trade_id = 77"),
        {"silver_came_from_bronze"} | AGREES,
    ),
    "quarantine_without_a_reason": Spoiled(
        UNCHECK + "insert into silver.coinbase_trades_quarantine "
        "values (1, 2, now(), 'exchange_ws', 'BTC-USD', '2', '{}', '{}')",
        {"quarantine_has_a_reason", "silver_accounts_for_every_row"},
    ),
    "too_many_in_quarantine": Spoiled(
        UNCHECK + "insert into silver.coinbase_trades_quarantine "
        "select bronze_id, 2, received_at, source, product_id, trade_id::text, "
        "array['invalid_price'], '{}' from silver.coinbase_trades order by bronze_id limit 5",
        {"quarantine_share", "silver_accounts_for_every_row"},
    ),
    "candle_twice": Spoiled(
        UNCHECK + append("gold.ohlc_1m", "open = high, close = high", "product_id = 'BTC-USD'"),
        {"ohlc_1m_no_duplicates", "ohlc_5m_rolls_up", "ohlc_5m_rolls_up" + IN_HISTORY} | AGREES,
    ),
    "candle_lost": Spoiled(
        UNCHECK + "delete from gold.ohlc_1m where bucket_1m = (select min(bucket_1m) "
        "from gold.ohlc_1m where bucket_1m > now() - interval '1 day')",
        {"ohlc_5m_rolls_up", "ohlc_5m_rolls_up" + IN_HISTORY} | AGREES,
    ),
    "old_candle_lost": Spoiled(
        "delete from gold.ohlc_1m where bucket_1m < now() - interval '1 day'",
        {"ohlc_1m_agrees_with_trades" + IN_HISTORY, "ohlc_5m_rolls_up" + IN_HISTORY},
    ),
    "longer_candles_lost": Spoiled(
        UNCHECK + "delete from gold.ohlc_6h; delete from gold.ohlc_1d where product_id = 'BTC-USD'",
        {
            "ohlc_6h_rolls_up",
            "ohlc_6h_rolls_up" + IN_HISTORY,
            "ohlc_1d_rolls_up",
            "ohlc_1d_rolls_up" + IN_HISTORY,
            "daily_kpis_agree_with_candles",
        }
        | COMPLETENESS
        | DATES,
    ),
    "day_lost": Spoiled(
        UNCHECK + "delete from gold.daily_kpis where product_id = 'ETH-USD'",
        {"daily_kpis_agree_with_candles"},
    ),
    "day_that_no_candle_has": Spoiled(
        UNCHECK + "update gold.daily_kpis set day = day + 1000",
        {"daily_kpis_agree_with_candles", "daily_kpis_has_its_dates" + IN_HISTORY},
    ),
    "high_below_low": Spoiled(
        UNCHECK
        + "".join(
            f"update gold.{table} set high = low, low = high + {number};"
            for number, table in enumerate([*CANDLES, "daily_kpis"], start=1)
        ),
        {"ohlc_1m_high_is_not_below_low", "daily_kpis_high_is_not_below_low"}
        | {"daily_kpis_agree_with_candles"}
        | INVARIANTS
        | AGREES
        | ROLL_UPS
        | ROLL_UPS_IN_HISTORY,
    ),
    "candles_of_no_market": Spoiled(
        UNCHECK + "update gold.ohlc_1m set open = high + 1;"
        "update gold.ohlc_5m set close = low - 1;"
        "update gold.ohlc_15m set vwap = high + 1;"
        "update gold.ohlc_1h set low = 0;"
        "update gold.ohlc_6h set close = 0;"
        "update gold.ohlc_1d set close = high + 1;",
        {"daily_kpis_agree_with_candles"} | INVARIANTS | AGREES | ROLL_UPS | ROLL_UPS_IN_HISTORY,
    ),
    "more_bought_than_traded": Spoiled(
        UNCHECK
        + "".join(f"update gold.{table} set taker_buy_volume = volume * 2;" for table in CANDLES),
        INVARIANTS,
    ),
    "candles_that_are_no_sum": Spoiled(
        UNCHECK + NO_SUM,
        {"daily_kpis_agree_with_candles", "ohlc_1h_invariants"} | ROLL_UPS | ROLL_UPS_IN_HISTORY,
    ),
    "candles_of_other_ids": Spoiled(
        UNCHECK + "update gold.ohlc_1d set last_trade_id = last_trade_id + 1;"
        "update gold.ohlc_6h set first_trade_id = first_trade_id - 1;"
        "update gold.ohlc_1h set repaired_count = 1;"
        "update gold.ohlc_15m set last_trade_id = last_trade_id + 1;"
        "update gold.ohlc_5m set repaired_count = 1;"
        "update gold.ohlc_1m set first_trade_id = first_trade_id - 1;",
        COMPLETENESS | AGREES | ROLL_UPS | ROLL_UPS_IN_HISTORY,
    ),
    "more_trades_than_ids": Spoiled(
        UNCHECK
        + "".join(
            f"update gold.{table} set first_trade_id = 1000, last_trade_id = 999;"
            for table in CANDLES
        ),
        COMPLETENESS | INVARIANTS | AGREES,
    ),
    "more_repaired_than_traded": Spoiled(
        UNCHECK
        + "".join(
            f"update gold.{table} set repaired_count = 2 * trade_count;" for table in CANDLES
        ),
        COMPLETENESS | INVARIANTS | AGREES,
    ),
    "old_candles_that_are_no_sum": Spoiled(NO_SUM, ROLL_UPS_IN_HISTORY),
    "days_out_of_range_and_twice": Spoiled(
        UNCHECK
        + "update gold.daily_kpis set realised_volatility = -0.1, taker_buy_share = 1.01;"
        + append("gold.daily_kpis"),
        {
            "daily_kpis_volatility_is_not_negative",
            "daily_kpis_taker_buy_share_is_a_share",
            "daily_kpis_no_duplicates",
        },
    ),
    "completeness_of_a_day_lost": Spoiled(
        UNCHECK + "delete from gold.trade_completeness where product_id = 'ETH-USD'", COMPLETENESS
    ),
    "day_that_does_not_count_from_the_one_before": Spoiled(
        UNCHECK + "update gold.trade_completeness set missing = missing + 1 "
        "where (product_id, last_trade_id) = ('BTC-USD', 199)",
        COMPLETENESS,
    ),
    "completeness_out_of_range_and_twice": Spoiled(
        UNCHECK
        + "update gold.trade_completeness set share_complete = 1.01;"
        + append("gold.trade_completeness"),
        {"completeness_share_is_a_share", "completeness_no_duplicates"},
    ),
    "trade_missing_for_a_minute": Spoiled(
        "delete from silver.coinbase_trades where (product_id, trade_id) = ('ETH-USD', 77);"
        "update gold.trade_completeness set missing = 1 where product_id = 'ETH-USD';"
        "update ops.pipeline_runs set end_ts = end_ts - interval '1 minute'",
        {"missing_trades_are_explained", "ohlc_1m_agrees_with_trades" + IN_HISTORY},
    ),
    "quarantined_trade_that_silver_lacks": Spoiled(
        UNCHECK + "insert into silver.coinbase_trades_quarantine "
        "values (1, 99, now(), 'exchange_ws', 'BTC-USD', '555', '{invalid_price}', '{}')",
        {"quarantined_trades_came_again", "silver_accounts_for_every_row"},
    ),
    "gap_open_for_an_hour": Spoiled(
        "insert into bronze.trade_gaps (product_id, first_id, last_id, found_by, missing, found_at)"
        "values ('BTC-USD', 200, 201, 'announced', '{[200,202)}', now() - interval '1 hour')",
        {"trade_gaps_open_too_long"},
    ),
    "candles_of_the_exchange_twice": Spoiled(
        UNCHECK + append("silver.coinbase_candles"), {"exchange_candles_no_duplicates"}
    ),
    "candle_that_nobody_asked_for": Spoiled(
        "insert into bronze.coinbase_candles_raw "
        "(product_id, granularity, first_bucket, last_bucket, payload) "
        "select 'BTC-USD', 60, now(), now(), '[[0, 1, 1, 1, 1, 1]]';"
        "update ops.model_watermarks set high = high + 1 where model = 'silver.coinbase_candles'",
        {"exchange_candles_can_be_read"},
    ),
    "candles_compared_twice": Spoiled(
        UNCHECK + append("gold.candle_reconciliation"), {"candle_reconciliation_no_duplicates"}
    ),
    "whole_candle_that_differs": Spoiled(
        UNCHECK + "update gold.candle_reconciliation set verdict = 'differs' where is_whole",
        {"candles_agree_with_the_exchange"},
    ),
    "candle_that_differs_where_trades_are_missing": Spoiled(
        UNCHECK + "update gold.candle_reconciliation set verdict = 'differs' where not is_whole",
        set(),
    ),
    "movers_out_of_range_and_twice": Spoiled(
        "update gold.top_movers set period = '2h' where period = '1h';"
        "update gold.top_movers set rank = rank - 1;" + append("gold.top_movers"),
        {
            "top_movers_period_is_known",
            "top_movers_rank_counts_from_one",
            "top_movers_no_duplicates",
        },
    ),
    "product_that_no_catalogue_names": Spoiled(
        UNCHECK + "delete from silver.products where product_id = 'ETH-USD'",
        {"trades_of_unknown_products", "catalogue_is_readable"},
    ),
    "catalogue_of_yesterday": Spoiled(
        "set session_replication_role = replica; update bronze.coinbase_products_raw "
        "set received_at = received_at - interval '1 day 1 second'",
        CATALOGUE,
    ),
    "increment_that_is_none": Spoiled(
        "update silver.products set quote_increment = 0 where product_id = 'ETH-USD'",
        {"catalogue_is_readable"},
    ),
    "two_versions_at_a_time": Spoiled(
        append("silver.products", "valid_from = valid_from + interval '1 second'"),
        {"products_have_one_version_at_a_time"},
    ),
    "product_twice": Spoiled(append("gold.dim_products"), {"dim_products_no_duplicates"}),
    "trade_off_the_increments": Spoiled(
        "insert into gold.off_increment_trades select product_id, trade_minute, trade_id, "
        "trade_time, price, 0.03, true, size, 1, true, bronze_id "
        "from silver.coinbase_trades where trade_id = 77 limit 1;" + UNCHECK,
        {"trades_fit_their_increments"},
    ),
    "nothing_received_for_ten_minutes": Spoiled(
        # A superuser alone can pass by the trigger that keeps bronze as it was received.
        "set session_replication_role = replica; update bronze.coinbase_trades_raw "
        "set received_at = received_at - interval '10 minutes 1 second'",
        {"bronze_freshness", "bronze_volume_5m"},
    ),
    "nothing_received_for_five_minutes": Spoiled(
        "set session_replication_role = replica; update bronze.coinbase_trades_raw "
        "set received_at = received_at - interval '5 minutes 1 second'",
        {"bronze_volume_5m"},
    ),
}


@pytest.mark.parametrize("name", SPOILED)
def test_bad_data_fails_the_checks_that_are_there_for_it_and_no_others(
    good_lakehouse: Lakehouse, dbt: Dbt, name: str
) -> None:
    spoiled = SPOILED[name]
    good_lakehouse.database.execute(spoiled.sql)
    said = good_lakehouse.dbt("test", "--selector", "full").statuses
    verdict = {"warn": "warn", "error": "fail"}
    expected = {check: verdict[severities(dbt)[check]] for check in spoiled.failing}
    checks = checks_of(dbt)
    assert {
        check: status for check, status in said.items() if check in checks and status != "pass"
    } == expected


def test_each_check_there_is_has_been_seen_to_fail(dbt: Dbt) -> None:
    seen = FRESHNESS.union(*(spoiled.failing for spoiled in SPOILED.values()))
    assert seen == checks_of(dbt)


def test_old_data_warns_and_stops_nothing(lakehouse: Lakehouse, dbt: Dbt) -> None:
    hours_ago = datetime.now(UTC) - timedelta(hours=3)
    lakehouse.receive(*(match(trade_id) for trade_id in range(1, 9)), received_at=hours_ago)
    build = lakehouse.dbt("build")
    assert (build.warned, build.failed) == (FRESHNESS | CATALOGUE, set())
    assert lakehouse.one("select trades from gold.daily_kpis") == {"trades": 8}
    assert lakehouse.one("select status from ops.pipeline_runs") == {"status": "success"}
    assert lakehouse.rows("select model from ops.model_watermarks where checked < high") == []


def test_only_what_may_be_no_fault_of_the_data_is_a_warning(dbt: Dbt) -> None:
    warnings = {name for name, severity in severities(dbt).items() if severity == "warn"}
    assert warnings == FRESHNESS | {
        "catalogue_is_recent",
        "catalogue_is_readable",
        "trades_fit_their_increments",
        "trades_of_unknown_products",
        "quarantine_share",
        "quarantined_trades_came_again",
        "trade_gaps_open_too_long",
        "exchange_candles_can_be_read",
    }


SPOIL_PRICES = """
    create function public.spoil() returns trigger language plpgsql as $$
    begin
        new.price := -new.price;
        return new;
    end
    $$;
    create trigger spoil before insert on silver.coinbase_trades
    for each row execute function public.spoil();
"""
WATERMARKS = "select model, high, checked from ops.model_watermarks"


def watermarks(lakehouse: Lakehouse) -> dict[str, tuple[int, int]]:
    return {row["model"]: (row["high"], row["checked"]) for row in lakehouse.rows(WATERMARKS)}


def test_a_failing_check_holds_back_gold_until_the_fault_is_repaired(
    lakehouse: Lakehouse,
) -> None:
    lakehouse.receive(*(match(trade_id) for trade_id in range(1, 6)))
    lakehouse.build()
    before = watermarks(lakehouse)
    assert set(before.values()) == {(5, 5)}
    candles = lakehouse.fingerprints()

    lakehouse.database.execute(SPOIL_PRICES)
    lakehouse.receive(match(6, at=1000), match(7, at=2))
    spoiled = lakehouse.dbt("build")
    failing = {"silver_no_negative_price", "silver_accounts_for_every_row"}
    downstream = {
        *("daily_kpis", "trade_completeness", "top_movers", "off_increment_trades"),
        *CANDLES,
    }
    assert spoiled.failed >= {"silver_no_negative_price"}
    assert spoiled.failed <= failing
    assert {spoiled.statuses[model] for model in downstream} == {"skipped"}

    # The fault no longer happens, but its rows are still there: they are checked again.
    lakehouse.database.execute("drop trigger spoil on silver.coinbase_trades")
    again = lakehouse.dbt("build")
    assert again.failed >= {"silver_no_negative_price"}
    assert {again.statuses[model] for model in downstream} == {"skipped"}
    now = watermarks(lakehouse)
    assert now["silver.coinbase_trades"] == (7, 5)
    for model in downstream:
        assert now[f"gold.{model}"] == before[f"gold.{model}"]
        if model != "top_movers":
            assert lakehouse.fingerprints()[f"gold.{model}"] == candles[f"gold.{model}"]

    lakehouse.database.execute("update silver.coinbase_trades set price = -price where price < 0")
    lakehouse.build()
    assert set(watermarks(lakehouse).values()) == {(7, 7)}
    incremental = lakehouse.fingerprints()
    assert lakehouse.one("select trades from gold.daily_kpis") == {"trades": 7}
    lakehouse.build("--full-refresh")
    assert lakehouse.fingerprints() == incremental


def test_a_check_that_passed_reads_only_rows_that_are_new(lakehouse: Lakehouse) -> None:
    lakehouse.receive(match(1), match(2))
    lakehouse.build()
    lakehouse.database.execute("update silver.coinbase_trades set price = -1 where trade_id = 1")
    lakehouse.receive(match(3, at=100))
    lakehouse.build()
    lakehouse.database.execute(UNCHECK)
    assert lakehouse.dbt("test").failed == {
        "silver_no_negative_price",
        "silver_accounts_for_every_row",
        "ohlc_1m_agrees_with_trades",
    }
