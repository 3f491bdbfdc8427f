"""Runs of dbt: what they write down, and what interrupting or crowding them can't do."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg2.extras
import pytest
from psycopg2.extensions import connection as PgConnection  # noqa: N812  (a class)

from tests.conftest import Database
from tests.dbt.conftest import PROJECT, Dbt, Lakehouse, match

pytestmark = pytest.mark.postgres18_only

PATIENCE_SECONDS = 60
SILVER = "silver.coinbase_trades"
RUNS = "select * from ops.pipeline_runs order by start_ts"
IDS = "select bronze_id, trade_id from silver.coinbase_trades order by bronze_id"


@contextmanager
def session(database: Database, role: str) -> Iterator[PgConnection]:
    """Open a connection whose transaction ends when the test says so."""
    opened = psycopg2.connect(database.dsn(role))
    try:
        yield opened
    finally:
        opened.close()


def blocked(database: Database, application: str = "medallion_dbt") -> list[Any]:
    """Return who of dbt waits for a lock, and for which kind."""
    return database.fetch(
        "select activity.pid, locks.locktype from pg_locks as locks "
        "inner join pg_stat_activity as activity using (pid) "
        "where not locks.granted and activity.application_name = $1",
        application,
    )


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "what the test waits for did not happen"
        time.sleep(0.02)


@contextmanager
def meanwhile(wait_for: Callable[[], object], act: Callable[[], None]) -> Iterator[None]:
    """While the block runs, wait for something in another thread and then act."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            until(wait_for)
            act()
        except BaseException as error:  # noqa: BLE001  (raised again below)
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    if errors:
        raise errors[0]


def insert(connection: PgConnection, *trade_ids: int, at: int = 0) -> None:
    with connection.cursor() as cursor:
        for trade_id in trade_ids:
            cursor.execute(
                "insert into bronze.coinbase_trades_raw "
                "(received_at, source, channel, session_id, product_id, payload) "
                "values (now(), 'exchange_ws', 'matches', gen_random_uuid(), 'BTC-USD', %s)",
                [psycopg2.extras.Json(match(trade_id, at=at))],
            )


def assert_equals_a_rebuild(lakehouse: Lakehouse) -> None:
    built = lakehouse.fingerprints()
    lakehouse.run("--full-refresh")
    assert lakehouse.fingerprints() == built


def test_each_run_writes_its_history_and_drops_what_is_too_old(
    lakehouse: Lakehouse, dbt: Dbt
) -> None:
    lakehouse.database.execute(
        "insert into ops.pipeline_runs values "
        "('old', 'build', now() - interval '31 days', now(), 'success', false, 0, 0, 0)"
    )
    lakehouse.receive(match(1), match(2), match(3, price="abc"))
    build = lakehouse.build()
    lakehouse.receive(match(4))
    lakehouse.dbt("run", "--full-refresh")
    lakehouse.database.execute("update silver.coinbase_trades set price = -1 where trade_id = 4")
    lakehouse.dbt("test")

    nodes = dbt.manifest.nodes
    models = {n.name for n in nodes.values() if n.resource_type == "model"}
    checks = {n.name for n in nodes.values() if n.resource_type == "test" and "full" not in n.tags}
    runs = lakehouse.rows(RUNS)
    assert [
        (
            run["pipeline_name"],
            run["status"],
            run["full_refresh"],
            run["bronze_low"],
            run["bronze_high"],
            run["records_processed"],
            run["models"],
            run["checks"],
        )
        for run in runs
    ] == [
        ("build", "success", False, 0, 3, 3, len(models), len(checks)),
        ("run", "success", True, 3, 4, 1, len(models), 0),
        ("test", "failed", False, 4, 4, 0, 0, len(checks)),
    ]
    assert [run["error_message"] for run in runs[:2]] == [None, None]
    told = set(runs[2]["error_message"].split("; "))
    assert "silver_no_negative_price: Got 1 result, configured to fail if != 0" in told
    assert all(run["start_ts"] <= run["end_ts"] for run in runs)

    results = lakehouse.rows(
        "select * from ops.dq_check_results where run_id = $1", runs[0]["run_id"]
    )
    assert {row["check_name"]: row["status"] for row in results} == {
        check: build.statuses[check] for check in checks
    }
    by_name = {row["check_name"]: row for row in results}
    price = by_name["silver_no_negative_price"]
    assert (price["check_type"], price["table_name"], price["severity"]) == (
        "expect_column_values_to_be_between",
        SILVER,
        "error",
    )
    assert (price["status"], price["passed"], price["failures"]) == ("pass", True, 0)
    share = by_name["quarantine_share"]
    assert (share["check_type"], share["severity"]) == ("singular", "warn")
    assert (share["status"], share["passed"], share["failures"]) == ("warn", False, 1)
    assert share["details"] is not None
    failed = lakehouse.one(
        "select status, passed, failures from ops.dq_check_results "
        "where run_id = $1 and check_name = 'silver_no_negative_price'",
        runs[2]["run_id"],
    )
    assert failed == {"status": "fail", "passed": False, "failures": 1}
    assert (
        lakehouse.rows(
            "select run_id from ops.dq_check_results where run_id = $1", runs[1]["run_id"]
        )
        == []
    )


def test_a_model_that_breaks_is_told_and_the_next_build_catches_up(lakehouse: Lakehouse) -> None:
    lakehouse.receive(match(1), match(2, at=400))
    lakehouse.run()
    lakehouse.receive(match(3), match(4, at=4000))
    with session(lakehouse.database, "admin") as admin, admin.cursor() as cursor:
        cursor.execute("lock table gold.ohlc_5m in access exclusive mode")

        def kill() -> None:
            lakehouse.database.fetch(
                "select pg_terminate_backend($1)", blocked(lakehouse.database)[0]["pid"]
            )
            admin.rollback()

        with meanwhile(lambda: blocked(lakehouse.database), kill):
            build = lakehouse.dbt("build")
    assert build.failed == {"ohlc_5m"}
    assert {build.statuses[name] for name in ("ohlc_15m", "ohlc_1d", "daily_kpis")} == {"skipped"}
    run = lakehouse.rows(RUNS)[-1]
    assert run["status"] == "failed"
    assert run["error_message"].startswith("ohlc_5m: Database Error")
    marks = dict(lakehouse.database.fetch("select model, high from ops.model_watermarks"))
    assert (marks["gold.ohlc_1m"], marks["gold.ohlc_5m"], marks["gold.ohlc_1d"]) == (4, 2, 2)

    lakehouse.run()
    assert lakehouse.one("select sum(trade_count) as n from gold.ohlc_1d") == {"n": 4}
    assert_equals_a_rebuild(lakehouse)


@contextmanager
def build_in_another_process(
    lakehouse: Lakehouse, dbt: Dbt, folder: Path, *arguments: str
) -> Iterator[subprocess.Popen[str]]:
    target = shutil.copytree(dbt.target, folder / "target")
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "dbt.cli.main", "--no-use-colors", "build"),
            *("--project-dir", str(PROJECT), "--profiles-dir", str(PROJECT)),
            *("--target-path", str(target), "--log-level-file", "none"),
            *arguments,
        ],
        env=lakehouse.transform.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def waits_for_its_turn(database: Database) -> bool:
    return bool(
        database.fetch(
            "select from pg_stat_activity where application_name = 'medallion_dbt_waiting'"
        )
    )


@pytest.mark.parametrize("first_is_killed", [True, False])
def test_a_second_build_waits_for_the_first_and_then_does_the_rest(
    lakehouse: Lakehouse, dbt: Dbt, tmp_path: Path, first_is_killed: bool
) -> None:
    lakehouse.receive(match(1), match(2, at=400))
    lakehouse.run()
    lakehouse.receive(match(3), match(4, at=4000), match(3))
    with (
        session(lakehouse.database, "admin") as admin,
        admin.cursor() as cursor,
        build_in_another_process(lakehouse, dbt, tmp_path) as first,
    ):
        cursor.execute("lock table gold.ohlc_5m in access exclusive mode")
        until(lambda: blocked(lakehouse.database) or first.poll() is not None)
        assert first.poll() is None, first.communicate()[0]
        lakehouse.receive(match(5, at=8000))

        def let_go() -> None:
            if first_is_killed:
                first.kill()
                first.wait()
            admin.rollback()

        with meanwhile(lambda: waits_for_its_turn(lakehouse.database), let_go):
            lakehouse.run()
        said = first.communicate()[0]

    earlier, first_run, second_run = lakehouse.rows(RUNS)
    assert earlier["status"] == second_run["status"] == "success"
    if first_is_killed:
        assert first_run["status"] == "failed"
        assert first_run["error_message"] == "Did not end; was it killed?"
        assert first_run["end_ts"] is not None
    else:
        assert first.returncode == 0, said
        assert first_run["status"] == "success"
        assert first_run["end_ts"] <= second_run["end_ts"]
    assert (first_run["bronze_low"], first_run["bronze_high"]) == (2, 5)
    assert (second_run["bronze_low"], second_run["bronze_high"]) == (5, 6)
    assert lakehouse.one("select sum(trade_count) as n from gold.ohlc_1d") == {"n": 5}
    assert_equals_a_rebuild(lakehouse)


def test_whoever_builds_the_tables_belong_to_the_transforming_role(lakehouse: Lakehouse) -> None:
    lakehouse.receive(match(1))
    lakehouse.transform = lakehouse.database.info("admin")
    lakehouse.run()
    lakehouse.transform = lakehouse.database.info("medallion_transform")
    lakehouse.receive(match(2))
    lakehouse.build()
    assert lakehouse.rows(
        "select distinct tableowner from pg_tables where schemaname in ('silver', 'gold')"
    ) == [{"tableowner": "medallion_transform"}]


def test_first_builds_and_rebuilds_may_begin_at_once(
    lakehouse: Lakehouse, dbt: Dbt, tmp_path: Path
) -> None:
    lakehouse.receive(match(1), match(2, at=400), match(1))
    with (
        build_in_another_process(lakehouse, dbt, tmp_path / "1") as first,
        build_in_another_process(lakehouse, dbt, tmp_path / "2", "--full-refresh") as second,
    ):
        until(lambda: waits_for_its_turn(lakehouse.database) or first.poll() is not None)
        lakehouse.run()
        for process in (first, second):
            said = process.communicate()[0]
            assert process.returncode == 0, said
    assert [run["status"] for run in lakehouse.rows(RUNS)] == ["success"] * 3
    assert lakehouse.one("select sum(trade_count) as n from gold.ohlc_1d") == {"n": 2}
    assert_equals_a_rebuild(lakehouse)


def test_a_batch_in_flight_is_waited_for_and_a_later_one_is_left_to_the_next_build(
    lakehouse: Lakehouse,
) -> None:
    database = lakehouse.database
    with (
        session(database, "medallion_ingest") as slow,
        session(database, "medallion_ingest") as quick,
        session(database, "admin") as admin,
        admin.cursor() as cursor,
    ):
        insert(slow, 1, 2)
        insert(quick, 3)
        quick.commit()
        with meanwhile(lambda: blocked(database), slow.commit):
            lakehouse.run()
        assert lakehouse.rows(IDS) == [{"bronze_id": n, "trade_id": n} for n in (1, 2, 3)]

        # Now one that arrives while the models are at work.
        insert(quick, 4)
        quick.commit()
        cursor.execute("lock table gold.ohlc_1m in access exclusive mode")

        def arrive() -> None:
            insert(quick, 5, 6)
            quick.commit()
            admin.rollback()

        with meanwhile(lambda: blocked(database), arrive):
            lakehouse.run()
    assert lakehouse.rows(RUNS)[-1]["bronze_high"] == 4
    assert lakehouse.one("select max(trade_id) as newest from silver.coinbase_trades") == {
        "newest": 4
    }
    lakehouse.run()
    assert lakehouse.one("select trades from gold.daily_kpis") == {"trades": 6}
    assert_equals_a_rebuild(lakehouse)


def test_a_batch_that_is_taken_back_leaves_a_hole_and_nothing_else(lakehouse: Lakehouse) -> None:
    with session(lakehouse.database, "medallion_ingest") as writer:
        insert(writer, 1)
        with meanwhile(lambda: blocked(lakehouse.database), writer.rollback):
            lakehouse.run()
        insert(writer, 1)
        writer.commit()
    lakehouse.build()
    assert lakehouse.rows(IDS) == [{"bronze_id": 2, "trade_id": 1}]


def test_building_one_model_alone_loses_nothing(lakehouse: Lakehouse) -> None:
    lakehouse.receive(match(1), match(2, at=400), match(3, price="x"))
    lakehouse.dbt("run")
    trade_id = 4
    for selected in ("coinbase_trades", "ohlc_1m", "ohlc_5m", "ohlc_1d", "coinbase_trades+"):
        lakehouse.receive(
            match(trade_id, at=trade_id * 60), match(trade_id + 1, at=2), match(1, size="7")
        )
        trade_id += 2
        build = lakehouse.dbt("build", "-s", selected)
        assert build.failed == set(), (selected, build.messages)
    lakehouse.run()
    assert lakehouse.one("select sum(trade_count) as n from gold.ohlc_1d") == {"n": trade_id - 2}
    assert_equals_a_rebuild(lakehouse)


def test_gold_follows_silver_that_was_rebuilt_alone(lakehouse: Lakehouse) -> None:
    lakehouse.receive(match(1), match(2, at=400), match(3, at=4000), match(2, at=400, price="7"))
    lakehouse.run()
    # As if the rules had been others when silver was built.
    lakehouse.database.execute(
        "delete from silver.coinbase_trades where trade_id = 2;"
        "insert into silver.coinbase_trades_quarantine select bronze_id, 1, received_at, source, "
        "product_id, trade_id::text, '{invalid_price}', '{}' from silver.coinbase_trades"
    )
    lakehouse.dbt("run", "--full-refresh", "-s", "ohlc_1m+")
    lakehouse.dbt("run", "--full-refresh", "-s", "coinbase_trades")
    lakehouse.dbt("run", "-s", "ohlc_5m+")
    lakehouse.build("--selector", "full")
    assert lakehouse.one("select trades from gold.daily_kpis") == {"trades": 3}
    assert_equals_a_rebuild(lakehouse)


def test_gold_forgets_what_silver_no_longer_has(lakehouse: Lakehouse) -> None:
    lakehouse.receive(match(1))
    lakehouse.build()
    lakehouse.database.execute(
        "insert into gold.ohlc_1m select product_id, bucket_1m - interval '1 hour', open, high, "
        "low, close, volume, quote_volume, vwap, trade_count, taker_buy_volume, first_trade_id, "
        "last_trade_id, repaired_count, bronze_id "
        "from gold.ohlc_1m"
    )
    lakehouse.dbt("run", "--full-refresh", "-s", "coinbase_trades")
    lakehouse.build("--selector", "full")
    assert lakehouse.one("select count(*) as n from gold.ohlc_1m") == {"n": 1}


def test_an_empty_build_is_refused_for_it_would_pass_over_trades(lakehouse: Lakehouse) -> None:
    lakehouse.receive(match(1))
    lakehouse.run()
    lakehouse.receive(match(2))
    with pytest.raises(Exception, match="--empty"):
        lakehouse.dbt("build", "--empty")
    lakehouse.build()
    assert lakehouse.one("select trades from gold.daily_kpis") == {"trades": 2}


def test_a_build_does_not_get_in_the_way_of_a_vacuum(lakehouse: Lakehouse) -> None:
    lakehouse.receive(match(1))
    lakehouse.run()
    lakehouse.receive(match(2))
    lakehouse.database.execute("alter database crypto_dw set lock_timeout to '2s'")
    with session(lakehouse.database, "admin") as admin, admin.cursor() as cursor:
        # What a vacuum holds while it is at work.
        cursor.execute("lock table silver.coinbase_trades in share update exclusive mode")
        cursor.execute("lock table gold.ohlc_1m in share update exclusive mode")
        lakehouse.build()


def test_a_description_that_changed_reaches_the_database(lakehouse: Lakehouse) -> None:
    lakehouse.run()
    lakehouse.database.execute(
        "comment on column gold.ohlc_1m.open is 'old'; comment on table gold.ohlc_5m is 'old'"
    )
    lakehouse.build()
    assert lakehouse.rows("select from pg_description where description = 'old'") == []
