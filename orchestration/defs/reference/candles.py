"""The exchange's own candles, which gold.candle_reconciliation holds ours against."""

import asyncio
from typing import Final

import dagster as dg

from ingestion.candles import Fetched
from ingestion.settings import IngestionSettings
from orchestration.candles import fetch_due_candles
from orchestration.defs.ingestion.assets import tables
from orchestration.project import CANDLES
from warehouse.settings import WarehouseSettings

# REST is asked until it answers; an exchange that is away must not hold the run for ever.
PATIENCE_SECONDS: Final = 1800


@dg.multi_asset(specs=[tables()[CANDLES]])
def exchange_candles(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
    """Ask the exchange for the candles that are due, 300 at a time."""
    fetched = asyncio.run(_fetch())
    context.log.info(f"{fetched.answers:,} answers came, {fetched.refused:,} were refused.")
    return dg.MaterializeResult(
        asset_key=CANDLES, metadata={"answers": fetched.answers, "refused": fetched.refused}
    )


async def _fetch() -> Fetched:
    async with asyncio.timeout(PATIENCE_SECONDS):
        return await fetch_due_candles(WarehouseSettings(), IngestionSettings().rest_url)


fetch_candles = dg.define_asset_job(
    "fetch_candles",
    selection=[CANDLES],
    description="Fetch the exchange's own candles; the next build compares ours with them.",
)
# Ahead of the hourly build.
hourly_candles = dg.ScheduleDefinition(
    job=fetch_candles, cron_schedule="50 * * * *", default_status=dg.DefaultScheduleStatus.RUNNING
)
