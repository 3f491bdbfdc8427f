"""When dbt runs, where no continuous transform does, and for what that leaves to the night."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Final

import dagster as dg
from dagster_dbt import build_dbt_asset_selection

from orchestration.bronze import look_at_bronze
from orchestration.defs.transform.assets import market_models
from warehouse.settings import Role, WarehouseError, WarehouseSettings

LEAST_DISTANCE: Final = timedelta(minutes=5)
"""Between the end of a build, whoever ran it, and the next that new trades set off. A run takes
some 40 s to start on two cores."""

UNFINISHED: Final = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
]

build_marts = dg.define_asset_job(
    "build_marts",
    selection=build_dbt_asset_selection([market_models], dbt_selector="incremental"),
    description="Bring silver and gold up to date, and check what is new.",
)
check_everything = dg.define_asset_job(
    "check_everything",
    selection=build_dbt_asset_selection([market_models], dbt_selector="full"),
    description="The same, and the checks that read all history.",
)

# Also where nothing is new: that it is late is for a check to say.
hourly = dg.ScheduleDefinition(
    job=build_marts, cron_schedule="5 * * * *", default_status=dg.DefaultScheduleStatus.RUNNING
)
nightly = dg.ScheduleDefinition(
    job=check_everything,
    cron_schedule="30 3 * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)


@dg.sensor(
    job=build_marts,
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
)
def new_trades(context: dg.SensorEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """Build the marts when trades have come that nothing has transformed for a while."""
    try:
        seen = asyncio.run(look_at_bronze(WarehouseSettings().connection(Role.TRANSFORM)))
    except WarehouseError as error:
        return dg.SkipReason(str(error))
    if not seen.lag:
        return dg.SkipReason("Nothing is new in bronze.")
    if seen.built_at and datetime.now(UTC) - seen.built_at < LEAST_DISTANCE:
        return dg.SkipReason(f"The last build ended less than {LEAST_DISTANCE} ago.")
    if context.instance.get_runs_count(
        dg.RunsFilter(job_name=build_marts.name, statuses=UNFINISHED)
    ):
        return dg.SkipReason("A run is on its way.")
    return dg.RunRequest(tags={"medallion/frames": str(seen.lag)})
