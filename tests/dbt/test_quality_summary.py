"""`gold.dq_summary`: what it says of the checks, and what it costs to look at."""

from __future__ import annotations

import pytest

from tests.dbt.conftest import Lakehouse, match
from tests.dbt.test_cost import rows_read
from warehouse.migrate import MIGRATIONS

pytestmark = pytest.mark.postgres18_only

HOURS = "select * from ops.dq_check_hours order by hour, check_name"
LATER = """
update ops.dq_check_results set check_ts = check_ts - interval '{0} days';
update ops.dq_check_hours
set hour = hour - interval '{0} days', last_failed_at = last_failed_at - interval '{0} days';
"""
CHECKS = 60
DAYS = 30
MONTH = f"""
insert into ops.dq_check_hours
select hour, 'check ' || n, 720, 719, hour + interval '1 minute'
from
    generate_series(1, {CHECKS}) as n,
    generate_series(now() - interval '{DAYS} days', now(), interval '1 hour') as hour;
insert into ops.dq_check_results (
    check_ts, run_id, check_name, check_type, table_name, severity, status, passed, failures,
    seconds, details
)
select
    check_ts, 'run', 'check ' || n, 'singular', 'gold.ohlc_1m', 'warn', 'pass', true, 0, 0, '{{}}'
from
    generate_series(1, {CHECKS}) as n,
    generate_series(now() - interval '{DAYS} days', now(), interval '20 minutes') as check_ts;
analyze ops.dq_check_results, ops.dq_check_hours;
"""


def summary_of(lakehouse: Lakehouse, check: str) -> dict[str, object]:
    return lakehouse.one("select * from gold.dq_summary where check_name = $1", check)


def test_the_summary_tells_the_newest_verdict_and_how_often_a_check_passed(
    lakehouse: Lakehouse,
) -> None:
    check = "silver_no_negative_price"
    lakehouse.receive(match(1))
    lakehouse.build()
    lakehouse.receive(match(2))
    lakehouse.dbt("run")
    lakehouse.database.execute("update silver.coinbase_trades set price = -1 where trade_id = 2")
    assert lakehouse.dbt("build").statuses["ohlc_1m_invariants"] == "skipped"
    failed = summary_of(lakehouse, check)
    assert (failed["status"], failed["failures"], failed["severity"]) == ("fail", 1, "error")
    assert failed["message"] == "Got 1 result, configured to fail if != 0"
    assert failed["last_failed_at"] == failed["checked_at"]
    assert (failed["runs_24h"], failed["passed_24h"], failed["pass_rate_24h"]) == (2, 1, 0.5)
    # Skipped is neither a verdict nor a run.
    skipped = summary_of(lakehouse, "ohlc_1m_invariants")
    assert (skipped["status"], skipped["runs_7d"], skipped["last_failed_at"]) == ("pass", 1, None)

    lakehouse.database.execute(LATER.format(2))
    failed = summary_of(lakehouse, check)
    assert (failed["runs_24h"], failed["passed_24h"], failed["pass_rate_24h"]) == (0, 0, None)
    assert (failed["runs_7d"], failed["pass_rate_7d"]) == (2, 0.5)
    lakehouse.database.execute("update silver.coinbase_trades set price = 1 where trade_id = 2")
    lakehouse.dbt("build", "--vars", "{run_history_days: 1}")
    passed = summary_of(lakehouse, check)
    assert (passed["status"], passed["failures"], passed["pass_rate_24h"]) == ("pass", 0, 1)
    assert (passed["runs_7d"], passed["passed_7d"]) == (3, 2)
    assert passed["last_failed_at"] == failed["last_failed_at"]
    # The counts outlast the results that they were made of.
    left = "select count(*) as results from ops.dq_check_results where check_name = $1"
    assert lakehouse.one(left, check)["results"] == 1

    lakehouse.database.execute(LATER.format(8))
    assert lakehouse.rows("select check_name from gold.dq_summary") == []


def test_the_migration_counts_the_results_of_before(lakehouse: Lakehouse) -> None:
    lakehouse.receive(match(1), match(2, price="abc"))
    assert lakehouse.build().warned
    counted = lakehouse.rows(HOURS)
    (migration,) = MIGRATIONS.glob("*_bi.sql")
    up, down = migration.read_text().split("-- migrate:down")
    lakehouse.database.execute(f"begin; {down}; {up}; commit;")
    assert lakehouse.rows(HOURS) == counted != []


def test_the_summary_reads_a_week_of_counts_and_one_result_of_each_check(
    lakehouse: Lakehouse,
) -> None:
    lakehouse.database.execute(MONTH)
    query = "select * from gold.dq_summary"
    assert len(lakehouse.rows(query)) == CHECKS
    read = rows_read(lakehouse, "gold.dq_summary", query)
    assert read["dq_check_results"] == CHECKS
    assert read["dq_check_hours"] <= CHECKS * (7 * 24 + 1) + CHECKS
