"""What Dagster knows: the way from Coinbase to the reports, its checks, and what runs when."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster_dbt.dbt_manifest import read_manifest_path

from orchestration.project import load_manifest
from orchestration.settings import prepare_home
from tests.dbt.conftest import Lakehouse

pytestmark = pytest.mark.postgres18_only

LAYERS = {"coinbase": 0, "bronze": 1, "staging": 2, "silver": 3, "gold": 4, "ops": 4, "bi": 5}


@pytest.fixture
def graph(definitions: dg.Definitions) -> Any:
    return definitions.resolve_asset_graph()


def test_the_lineage_reads_from_coinbase_to_the_reports_without_a_break(graph: Any) -> None:
    coinbase, reports = dg.AssetKey(["coinbase", "market_data"]), dg.AssetKey(["bi", "bi_reports"])
    for key in graph.get_all_asset_keys():
        # Whatever is not the source has one, and each step goes on in its layer or to the next.
        node = graph.get(key)
        assert bool(node.parent_keys) == (key != coinbase), key
        for parent in node.parent_keys:
            distance = LAYERS[node.group_name] - LAYERS[graph.get(parent).group_name]
            # Quarantine reads staging beside silver; what looks on compares the two.
            assert distance in ({1, 2} if node.group_name == "ops" else {0, 1}), (parent, key)
        if node.group_name in {"staging", "silver", "gold", "ops"}:
            assert coinbase in ancestors(graph, key), key
        if node.group_name == "gold":
            assert key in graph.get(reports).parent_keys, key
    assert coinbase in ancestors(graph, reports)


def ancestors(graph: Any, key: dg.AssetKey) -> set[dg.AssetKey]:
    found: set[dg.AssetKey] = set()
    left = [key]
    while left:
        parents = graph.get(left.pop()).parent_keys - found
        found |= parents
        left.extend(parents)
    return found


def test_every_check_of_dbt_is_a_check_of_an_asset(graph: Any) -> None:
    nodes = read_manifest_path(load_manifest())["nodes"].values()
    tests = {node["name"] for node in nodes if node["resource_type"] == "test"}
    assert {key.name for key in graph.asset_check_keys} == tests


def test_a_manifest_that_is_written_anew_is_never_seen_half_written(house: Lakehouse) -> None:
    path = load_manifest()
    os.utime(path, (0, 0))
    # Who has opened the old one reads on in it: the new one takes its place, whole.
    with path.open("rb") as opened:
        before = opened.read()
        load_manifest()
        opened.seek(0)
        assert opened.read() == before
    assert path.stat().st_mtime > 0
    generated = json.loads(path.read_bytes())["metadata"]["generated_at"]
    assert generated > json.loads(before)["metadata"]["generated_at"]


def test_checks_say_what_they_check(definitions: dg.Definitions) -> None:
    models = definitions.resolve_assets_def(dg.AssetKey(["gold", "ohlc_1m"]))
    described = {spec.name: spec.description for spec in models.check_specs}
    assert described["ohlc_1m_no_duplicates"] == "A product has one candle a minute."
    assert all(described.values())


def test_tables_have_their_columns_described(graph: Any) -> None:
    schema = graph.get(dg.AssetKey(["gold", "ohlc_1m"])).metadata["dagster/column_schema"]
    types = {column.name: column.type for column in schema.columns}
    assert types["bucket_1m"] == "timestamptz"


def test_bronze_is_watched_and_late_after_ten_minutes(graph: Any) -> None:
    bronze = graph.get(dg.AssetKey(["bronze", "coinbase_trades_raw"]))
    assert (bronze.is_external, bronze.is_observable) == (True, True)
    assert bronze.freshness_policy == dg.FreshnessPolicy.time_window(
        warn_window=timedelta(minutes=10), fail_window=timedelta(hours=1)
    )


def test_marts_take_new_rows_hourly_and_everything_is_checked_at_night(
    definitions: dg.Definitions, graph: Any
) -> None:
    def checks(job: str) -> set[str]:
        keys = definitions.resolve_job_def(job).asset_layer.asset_graph.asset_check_keys
        return {key.name for key in keys}

    every_check = {key.name for key in graph.asset_check_keys}
    assert checks("check_everything") == every_check
    left_for_the_night = every_check - checks("build_marts")
    assert {name for name in every_check if name.endswith("_in_all_history")} == left_for_the_night
    repository = definitions.get_repository_def()
    assert repository.get_sensor_def("new_trades").job_name == "build_marts"
    schedules = repository.schedule_defs
    assert {schedule.job_name: schedule.cron_schedule for schedule in schedules} == {
        "build_marts": "5 * * * *",
        "check_everything": "30 3 * * *",
        "repair_gaps": "20 * * * *",
        "fetch_candles": "50 * * * *",
        "archive_bronze": "30 4 * * *",
        "product_catalogue": "0 * * * *",
    }


def test_one_dbt_runs_at_a_time_and_sql_that_failed_is_not_tried_again(
    definitions: dg.Definitions, house: Lakehouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("build_marts", "check_everything", "rebuild_days"):
        nodes = definitions.resolve_job_def(name).all_node_defs
        assert [node.pool for node in nodes if isinstance(node, dg.OpDefinition)] == ["dbt"], name
    monkeypatch.setenv("MEDALLION_HOME", str(tmp_path))
    monkeypatch.setenv("DAGSTER_HOME", "")
    with dg.DagsterInstance.from_config(str(prepare_home())) as instance:
        pools = instance.get_concurrency_config().pool_config
        assert pools.default_pool_limit == 1
        assert pools.pool_granularity is not None
        assert pools.pool_granularity.value == "run"
        assert (instance.run_retries_enabled, instance.run_retries_max_retries) == (True, 2)
        assert not instance.run_retries_retry_on_asset_or_op_failure
        assert not instance.telemetry_enabled


def test_dagster_remembers_in_postgresql_where_told_to(
    house: Lakehouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = house.database.dsn("admin").replace("postgres://", "postgresql://").split("?")[0]
    monkeypatch.setenv("MEDALLION_HOME", str(tmp_path))
    monkeypatch.setenv("DAGSTER_HOME", "")
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", url)
    with dg.DagsterInstance.from_config(str(prepare_home())) as instance:
        instance.report_runless_asset_event(dg.AssetMaterialization(["gold", "ohlc_1m"]))
    assert house.one("select count(*) as n from public.event_logs") == {"n": 1}
    assert "password" not in (tmp_path / "dagster" / "dagster.yaml").read_text()
