"""Gaps that no ingester repairs, because none runs or it has much to do."""

import asyncio
from uuid import uuid4

import dagster as dg

from ingestion.coinbase.rest import RestClient
from ingestion.gaps import GapLedger
from ingestion.repair import Repairer
from ingestion.settings import IngestionSettings
from orchestration.bronze import look_at_bronze
from warehouse.settings import Role, WarehouseError, WarehouseSettings

# REST is asked until it answers; an exchange that is away must not hold the run for ever.
PATIENCE_SECONDS = 1800


@dg.op
def fetch_missing_trades(context: dg.OpExecutionContext) -> None:
    """Fetch over REST what is due to be asked for, and say how many trades came."""
    trades = asyncio.run(_repair())
    context.log.info(f"{trades:,} missing trades came.")
    context.add_output_metadata({"trades": trades})


async def _repair() -> int:
    found = 0

    def came(trades: int) -> None:
        nonlocal found
        found += trades

    ledger = GapLedger(WarehouseSettings().connection(Role.INGEST).open)
    try:
        async with (
            asyncio.timeout(PATIENCE_SECONDS),
            RestClient(IngestionSettings().rest_url) as rest,
        ):
            repairer = Repairer(ledger, rest, uuid4(), on_trades=came)
            while await repairer.fill_what_is_due():
                pass
    finally:
        ledger.close()
    return found


@dg.job
def repair_gaps() -> None:
    """Fetch over REST the trades that are missing. A running ingester does so by itself."""
    fetch_missing_trades()


@dg.schedule(
    job=repair_gaps, cron_schedule="20 * * * *", default_status=dg.DefaultScheduleStatus.RUNNING
)
def hourly_repair() -> dg.RunRequest | dg.SkipReason:
    """Repair each hour, if there is anything to repair."""
    try:
        seen = asyncio.run(look_at_bronze(WarehouseSettings().connection(Role.TRANSFORM)))
    except WarehouseError as error:
        return dg.SkipReason(str(error))
    return dg.RunRequest() if seen.open_gaps else dg.SkipReason("No gap is open.")
