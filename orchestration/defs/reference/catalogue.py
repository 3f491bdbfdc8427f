"""The exchange's list of products, fetched each hour."""

import asyncio
from datetime import timedelta

import dagster as dg

from ingestion.catalogue import Fetched, fetch_catalogue
from ingestion.coinbase.rest import RestClient
from ingestion.settings import IngestionSettings
from orchestration.defs.ingestion.assets import tables
from orchestration.project import PRODUCTS
from warehouse.settings import Role, WarehouseSettings

# REST is asked until it answers; an exchange that is away must not hold the run for ever.
PATIENCE_SECONDS = 1800


@dg.multi_asset(
    specs=[
        tables()[PRODUCTS].replace_attributes(
            # From a day on the check catalogue_is_recent warns, too.
            freshness_policy=dg.FreshnessPolicy.time_window(
                warn_window=timedelta(hours=3), fail_window=timedelta(days=1)
            ),
        )
    ]
)
def exchange_products() -> "dg.MaterializeResult[None]":
    """Append the products that the exchange lists now to bronze."""
    fetched = asyncio.run(_fetch())
    metadata = {"products": fetched.products, "refused": fetched.refused}
    return dg.MaterializeResult(asset_key=PRODUCTS, metadata=metadata)


async def _fetch() -> Fetched:
    connection = await WarehouseSettings().connection(Role.INGEST).connect()
    try:
        async with (
            asyncio.timeout(PATIENCE_SECONDS),
            RestClient(IngestionSettings().rest_url) as rest,
        ):
            return await fetch_catalogue(rest, connection)
    finally:
        await connection.close()


product_catalogue = dg.define_asset_job(
    "product_catalogue",
    # Its checks are of dbt, which takes them along when it builds.
    selection=dg.AssetSelection.assets(PRODUCTS).without_checks(),
    description="Fetch the exchange's list of products.",
)

# Done when build_marts begins, at five past.
hourly_catalogue = dg.ScheduleDefinition(
    job=product_catalogue,
    cron_schedule="0 * * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)
