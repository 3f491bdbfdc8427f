"""Look at all that may be a problem: a few queries over indexes, none of which reads history."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import asyncpg
import dagster as dg
import yaml  # type: ignore[import-untyped]

from orchestration.bronze import Connection, look_at
from orchestration.defs.alerts.problems import (
    FailedCheck,
    FailedRun,
    OpenGaps,
    Quarantine,
    Seen,
    Thresholds,
)
from orchestration.project import DBT_PROJECT
from warehouse.settings import ConnectionInfo, WarehouseError

LOOK_SECONDS: Final = 15.0
"""A database that takes longer is away, too. A tick may take 60 s."""
WILL_RETRY: Final = "dagster/will_retry"

_OPEN_GAPS = """
select product_id, sum(upper(ids) - lower(ids))::bigint as trades
from bronze.trade_gaps
cross join unnest(missing) as ids
where closed_at is null and next_try_at < 'infinity' and found_at < clock_timestamp() - $1::interval
group by product_id
order by trades desc, product_id
"""

# The windows of the continuous transform are small: one bad trade at night is a large share of one.
# So it is the last ten minutes, or the newest build that had anything to read where that is longer;
# and half a million frames at most, for a first build may have read a year.
_NEWEST_TRADES = """
-- Materialized, it would read all runs.
with finished as not materialized (
    select start_ts, bronze_low, bronze_high from ops.pipeline_runs
    where pipeline_name = 'build' and status <> 'running'
),

newest as (
    select bronze_low, bronze_high from finished
    where bronze_high > bronze_low
    order by start_ts desc
    limit 1
),

earlier as (
    select bronze_high from finished
    where start_ts < clock_timestamp() - interval '10 minutes'
    order by start_ts desc
    limit 1
)

select greatest(
    least(bronze_low, coalesce((select bronze_high from earlier), 0)), bronze_high - 500000
)
from newest
where to_regclass('silver.coinbase_trades_quarantine') is not null
"""

_QUARANTINE = """
select
    (select count(*) from silver.coinbase_trades_quarantine where bronze_id > $1) as quarantined,
    (select count(*) from silver.coinbase_trades where bronze_id > $1) as accepted,
    array(
        select reason from silver.coinbase_trades_quarantine
        cross join unnest(reject_reasons) as reason
        where bronze_id > $1
        group by reason
        order by count(*) desc, reason
    ) as reasons
"""

_FAILED_CHECKS = """
select newest.check_name, newest.table_name, newest.details ->> 'message' as message
from unnest($1::text[]) as known (name)
cross join lateral (
    select check_name, table_name, status, details from ops.dq_check_results
    where check_name = known.name and status <> 'skipped'
    order by check_ts desc
    limit 1
) as newest
where newest.status in ('fail', 'error')
order by newest.check_name
"""

_NEWEST_BUILD = """
select status, error_message from ops.pipeline_runs
where pipeline_name = 'build' and status <> 'running'
order by start_ts desc
limit 1
"""


def read_thresholds(manifest: Mapping[str, Any]) -> Thresholds:
    """Read from dbt's project what its own checks go by."""
    # The manifest has no variables.
    variables = yaml.safe_load((DBT_PROJECT / "dbt_project.yml").read_text())["vars"]
    bronze = manifest["sources"]["source.medallion.coinbase.coinbase_trades_raw"]
    late = bronze["freshness"]["warn_after"]
    return Thresholds(
        stale_after=timedelta(**{f"{late['period']}s": late["count"]}),
        gap_open_max=timedelta(minutes=variables["gap_open_max_minutes"]),
        quarantine_share_max=variables["quarantine_share_max"],
    )


def read_checks(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return the checks of the project, each with what it checks: an old name is no problem."""
    return {
        node["name"]: node["description"].strip()
        for node in manifest["nodes"].values()
        if node["resource_type"] == "test"
    }


async def look(
    connection_info: ConnectionInfo,
    checks: Mapping[str, str],
    thresholds: Thresholds,
    failed_runs: Sequence[FailedRun],
) -> Seen:
    """Look at the database once.

    Raises:
        WarehouseError: it is away, not migrated, or takes too long.

    """
    connection = await connection_info.connect()
    try:
        async with asyncio.timeout(LOOK_SECONDS):
            bronze = await look_at(connection)
            gaps = await connection.fetch(_OPEN_GAPS, thresholds.gap_open_max)
            failed = await connection.fetch(_FAILED_CHECKS, list(checks))
            build = await connection.fetchrow(_NEWEST_BUILD)
            return Seen(
                at=datetime.now(UTC),
                newest_frame=bronze.received_at,
                open_gaps=tuple(OpenGaps(**gap) for gap in gaps),
                quarantine=await _quarantine(connection),
                failed_checks=tuple(
                    FailedCheck(name, table, message or "", checks[name])
                    for name, table, message in failed
                ),
                failed_build=(build["error_message"] or "It says no reason.")
                if build is not None and build["status"] == "failed"
                else None,
                failed_runs=tuple(failed_runs),
            )
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        where = f"{connection_info.host}:{connection_info.port}"
        reason = str(error) or type(error).__name__
        raise WarehouseError(f"PostgreSQL on {where} gives no answer ({reason}).") from None
    finally:
        connection.terminate()


async def _quarantine(connection: Connection) -> Quarantine:
    low = await connection.fetchval(_NEWEST_TRADES)
    if low is None:
        return Quarantine(0, 0, ())
    row = await connection.fetchrow(_QUARANTINE, low)
    assert row is not None  # noqa: S101  (it selects from nothing, which is one row)
    return Quarantine(row["quarantined"], row["accepted"], tuple(row["reasons"]))


def look_at_runs(instance: dg.DagsterInstance, jobs: Sequence[str]) -> Iterator[FailedRun]:
    """Return the jobs whose newest finished run failed, and is not about to be tried again."""
    finished = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE]
    for job in jobs:
        newest = instance.get_run_records(dg.RunsFilter(job_name=job, statuses=finished), limit=1)
        for record in newest:
            run = record.dagster_run
            if run.is_failure and run.tags.get(WILL_RETRY) != "true":
                yield FailedRun(job, run.run_id)
