"""Gold of chosen days, made anew from silver."""

import json
from collections.abc import Iterator
from typing import Any, Final

import dagster as dg
from dagster_dbt import DbtCliResource

from orchestration.defs.transform.assets import BUILD, manifest
from orchestration.project import RUN_TARGET, connected, translator
from warehouse.settings import Role, WarehouseSettings

# Since the exchange opened, today included.
days: Final = dg.DailyPartitionsDefinition(start_date="2015-01-01", end_offset=1)


@dg.op(pool="dbt", out=dg.Out(dg.Nothing))
def rebuild_gold(context: dg.OpExecutionContext, dbt: DbtCliResource) -> Iterator[Any]:
    """Empty the days in each table of gold and fill them again, each table in one transaction."""
    window = context.partition_time_window
    chosen = {"rebuild_from": f"{window.start:%Y-%m-%d}", "rebuild_until": f"{window.end:%Y-%m-%d}"}
    arguments = ["--select", "gold", "--exclude", "tag:full", "--vars", json.dumps(chosen)]
    with connected(WarehouseSettings().connection(Role.TRANSFORM)):
        yield from dbt.cli(
            [*BUILD, *arguments],
            manifest=manifest,
            dagster_dbt_translator=translator,
            context=context,
            target_path=RUN_TARGET,
        ).stream()


@dg.job(partitions_def=days)
def rebuild_days() -> None:
    """Make the candles, KPIs and completeness of a day anew from silver."""
    rebuild_gold()
