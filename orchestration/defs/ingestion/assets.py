"""Coinbase and the tables of bronze, of which the trades are watched."""

import asyncio
from datetime import timedelta
from typing import Any

import dagster as dg
from dagster_dbt.dbt_manifest import read_manifest_path

from orchestration.bronze import Bronze, look_at_bronze
from orchestration.project import (
    ARCHIVE,
    BRONZE,
    CANDLES,
    COINBASE,
    PRODUCTS,
    load_manifest,
    project,
    translator,
)
from warehouse.settings import Role, WarehouseError, WarehouseSettings

coinbase = dg.AssetSpec(
    COINBASE,
    description="Trades of Coinbase: two WebSocket feeds, and REST for those that they leave out.",
    group_name="coinbase",
    kinds={"websocket"},
)


def tables() -> dict[dg.AssetKey, dg.AssetSpec]:
    """Describe bronze as dbt's sources do."""
    manifest = read_manifest_path(load_manifest())
    specs = (translator.get_asset_spec(manifest, name, project) for name in manifest["sources"])
    return {
        spec.key: spec.replace_attributes(deps=[COINBASE], kinds={"postgres"}) for spec in specs
    }


# Jobs of Dagster's own write the others.
WRITTEN_BY_JOBS = {ARCHIVE, BRONZE, CANDLES, PRODUCTS}
other_tables = [spec for key, spec in tables().items() if key not in WRITTEN_BY_JOBS]


def metadata(seen: Bronze) -> dict[str, Any]:
    """Return what the UI shows of bronze."""
    newest = {}
    if seen.received_at is not None:
        newest["newest_frame"] = dg.MetadataValue.timestamp(seen.received_at)
    return {
        "dagster/row_count": seen.estimated_rows,
        **newest,
        "frames_not_yet_transformed": seen.lag,
        "open_gaps": seen.open_gaps,
        "missing_trades": seen.missing_trades,
    }


@dg.multi_observable_source_asset(  # type: ignore[untyped-decorator]  # (dagster has no type for it)
    specs=[
        tables()[BRONZE].replace_attributes(
            # As dbt has it of its source.
            freshness_policy=dg.FreshnessPolicy.time_window(
                warn_window=timedelta(minutes=10), fail_window=timedelta(minutes=60)
            ),
        )
    ]
)
def bronze_trades() -> dg.ObserveResult:
    """Look at bronze now."""
    seen = asyncio.run(look_at_bronze(WarehouseSettings().connection(Role.TRANSFORM)))
    return dg.ObserveResult(
        asset_key=BRONZE, metadata=metadata(seen), data_version=dg.DataVersion(str(seen.last_id))
    )


@dg.sensor(minimum_interval_seconds=60, default_status=dg.DefaultSensorStatus.RUNNING)
def bronze_watch(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    """Tell Dagster each minute how bronze stands: a run that observes would take long to start."""
    try:
        seen = asyncio.run(look_at_bronze(WarehouseSettings().connection(Role.TRANSFORM)))
    except WarehouseError as error:
        return dg.SkipReason(str(error))
    told = metadata(seen)
    events: list[dg.AssetObservation | dg.AssetMaterialization]
    events = [dg.AssetObservation(BRONZE, metadata=told)]
    if seen.last_id > int(context.cursor or 0):
        # What freshness goes by.
        events.append(dg.AssetMaterialization(BRONZE, metadata=told))
    return dg.SensorResult(asset_events=events, cursor=str(seen.last_id))
