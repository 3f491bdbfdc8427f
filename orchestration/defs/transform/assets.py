"""The models of dbt with their checks, and the reports that read them."""

# Not `from __future__ import annotations`: Dagster reads what a function asks for.

import asyncio
from collections.abc import Iterator
from typing import Any

import dagster as dg
from dagster_dbt import DbtCliResource, dbt_assets
from dagster_dbt.dbt_manifest import read_manifest_path

from orchestration.project import RUN_TARGET, connected, load_manifest, project, translator
from orchestration.rows import row_count
from warehouse.settings import Role, WarehouseSettings

manifest = read_manifest_path(load_manifest())
# Unit tests look at rows of their own: they are for developers.
BUILD = ("build", "--exclude-resource-type", "unit_test")


# No retry policy: SQL that failed would fail alike, and hold the pool meanwhile.
@dbt_assets(
    manifest=manifest,
    project=project,
    selector="full",
    dagster_dbt_translator=translator,
    pool="dbt",
)
def market_models(context: dg.AssetExecutionContext, dbt: DbtCliResource) -> Iterator[Any]:
    """Build what is selected."""
    connection = WarehouseSettings().connection(Role.TRANSFORM)
    with connected(connection):
        for event in dbt.cli([*BUILD], context=context, target_path=RUN_TARGET).stream():
            if isinstance(event, dg.Output):
                table = context.asset_key_for_output(event.output_name)
                # To count a view is to read all below it.
                if not table.path[-1].startswith("stg_"):
                    rows = asyncio.run(row_count(connection, table))
                    context.add_output_metadata({"dagster/row_count": rows}, event.output_name)
            yield event


reports = [
    dg.AssetSpec(
        translator.get_asset_key(exposure),
        deps=[
            translator.get_asset_spec(manifest, model, project).key
            for model in exposure["depends_on"]["nodes"]
        ],
        description=exposure["description"],
        group_name="bi",
        owners=[exposure["owner"]["email"]],
        kinds={exposure["type"]},
    )
    for exposure in manifest["exposures"].values()
]
