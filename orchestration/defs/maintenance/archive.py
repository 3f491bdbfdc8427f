"""Days of bronze that are older than it keeps go to the archive each night."""

import asyncio

import dagster as dg

from orchestration.project import ARCHIVE, BRONZE
from warehouse.archive import Moved, open_archive
from warehouse.settings import WarehouseSettings


@dg.asset(key=ARCHIVE, deps=[BRONZE], group_name="bronze", kinds={"parquet"})
def archived_days(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
    """Days of bronze as Parquet files: those that MEDALLION_BRONZE_DAYS does not keep."""
    keep_days = WarehouseSettings().medallion_bronze_days
    if keep_days is None:
        raise dg.Failure("MEDALLION_BRONZE_DAYS is not set: bronze is kept for ever.")
    moved, waiting = asyncio.run(_archive(context, keep_days))
    return dg.MaterializeResult(
        metadata={
            "days": ", ".join(str(day.day) for day in moved),
            "rows": sum(day.rows for day in moved),
            "files": sum(day.files for day in moved),
            "megabytes": round(sum(day.size for day in moved) / 1e6, 1),
            "days_that_wait": len(waiting),
        }
    )


async def _archive(
    context: dg.AssetExecutionContext, keep_days: int
) -> tuple[list[Moved], list[str]]:
    moved, waiting = [], []
    async with open_archive(WarehouseSettings()) as archive:
        for day in await archive.due(keep_days):
            if why_not := await archive.why_not(day, keep_days):
                context.log.warning(why_not)
                waiting.append(why_not)
            else:
                moved.append(await archive.archive(day))
                context.log.info(f"Archived {moved[-1]}.")
    return moved, waiting


archive_bronze = dg.define_asset_job(
    "archive_bronze",
    selection=[archived_days],
    description="Move days of bronze that are older than it keeps to the archive.",
)


# After the checks of the night: a day goes when every check has passed it.
@dg.schedule(
    job=archive_bronze, cron_schedule="30 4 * * *", default_status=dg.DefaultScheduleStatus.RUNNING
)
def nightly_archive() -> dg.RunRequest | dg.SkipReason:
    """Archive each night, if bronze is not to be kept for ever."""
    if WarehouseSettings().medallion_bronze_days is None:
        return dg.SkipReason("MEDALLION_BRONZE_DAYS is not set: bronze is kept for ever.")
    return dg.RunRequest()
