"""Runs of Dagster against a real database."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import httpx
import pytest

from tests.dbt.conftest import NOON, Lakehouse, match

pytestmark = [
    pytest.mark.postgres18_only,
    # Of dagster-dbt's own making.
    pytest.mark.filterwarnings("ignore:AssetExecutionContext:DeprecationWarning"),
]


def test_a_run_builds_the_marts_and_tells_rows_and_verdicts(
    definitions: dg.Definitions, house: Lakehouse, instance: dg.DagsterInstance
) -> None:
    house.receive(match(1), match(2, at=61), match(3, price="abc"))
    done = definitions.resolve_job_def("build_marts").execute_in_process(instance=instance)
    assert done.success
    assert house.one("select count(*) as n from gold.ohlc_1m") == {"n": 2}
    assert house.rows("select status from ops.pipeline_runs") == [{"status": "success"}]

    told = {
        event.asset_key.to_user_string(): event.step_materialization_data.materialization
        for event in done.get_asset_materialization_events()
        if event.asset_key
    }
    assert {key.split("/")[0] for key in told} == {"silver", "gold", "ops"}
    assert len(told) == 27
    assert told["gold/ohlc_1m"].metadata["dagster/row_count"].value == 2
    assert "dagster/row_count" not in told["silver/stg_coinbase__trades"].metadata
    verdicts = {check.check_name: check for check in done.get_asset_check_evaluations()}
    share = verdicts["quarantine_share"]
    assert (share.passed, share.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert verdicts["silver_accounts_for_every_row"].passed


def test_a_chosen_day_is_rebuilt(
    definitions: dg.Definitions, house: Lakehouse, instance: dg.DagsterInstance
) -> None:
    house.receive(match(1), match(2, at=61))
    house.build()
    built = house.fingerprints()
    house.database.execute("update gold.ohlc_1m set volume = volume + 1; delete from gold.ohlc_5m")
    done = definitions.resolve_job_def("rebuild_days").execute_in_process(
        partition_key=f"{NOON:%Y-%m-%d}", instance=instance
    )
    assert house.fingerprints() == built
    told = {event.asset_key for event in done.get_asset_materialization_events()}
    assert dg.AssetKey(["gold", "ohlc_1m"]) in told
    assert not {key for key in told if key and key.path[0] == "silver"}


def test_days_that_bronze_does_not_keep_are_archived(
    definitions: dg.Definitions,
    house: Lakehouse,
    instance: dg.DagsterInstance,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    house.receive(match(1), match(2), received_at=NOON - timedelta(days=2))
    house.build()
    house.receive(match(3), received_at=NOON - timedelta(days=3))
    schedule = definitions.get_repository_def().get_schedule_def("nightly_archive")
    with dg.build_schedule_context(instance) as context:
        assert "kept for ever" in schedule.evaluate_tick(context).skip_message
        monkeypatch.setenv("MEDALLION_ARCHIVE_URL", str(tmp_path))
        monkeypatch.setenv("MEDALLION_BRONZE_DAYS", "1")
        assert len(schedule.evaluate_tick(context).run_requests) == 1
    done = definitions.resolve_job_def("archive_bronze").execute_in_process(instance=instance)
    [told] = done.asset_materializations_for_node("bronze__archive_files")
    metadata = {name: entry.value for name, entry in told.metadata.items()}
    assert metadata.pop("megabytes") >= 0
    assert metadata == {
        "days": f"{NOON - timedelta(days=2):%Y-%m-%d}",
        "rows": 2,
        "files": 1,
        "days_that_wait": 1,
    }
    assert house.one("select count(*) as n from bronze.coinbase_trades_raw") == {"n": 1}


def test_missing_trades_are_fetched_over_rest(
    definitions: dg.Definitions,
    house: Lakehouse,
    instance: dg.DagsterInstance,
    medallion: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    unused_tcp_port: int,
) -> None:
    url = f"http://127.0.0.1:{unused_tcp_port}"
    monkeypatch.setenv("COINBASE_REST_URL", url)
    with medallion("simulate", "--port", str(unused_tcp_port)) as simulator:
        simulator.wait_for(lambda: "ws://" in simulator.said)
        newest = httpx.get(f"{url}/products/BTC-USD/trades?limit=1").json()[0]["trade_id"]
        house.record_gap(f"{{[{newest - 9},{newest + 1})}}")
        done = definitions.resolve_job_def("repair_gaps").execute_in_process(instance=instance)
    assert done.success
    assert house.one("select status, repaired from bronze.trade_gaps") == {
        "status": "repaired",
        "repaired": 10,
    }
    assert house.one("select count(*) as n from bronze.coinbase_trades_raw") == {"n": 10}


def test_candles_of_the_exchange_are_fetched(
    definitions: dg.Definitions,
    house: Lakehouse,
    instance: dg.DagsterInstance,
    medallion: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    unused_tcp_port: int,
) -> None:
    monkeypatch.setenv("COINBASE_REST_URL", f"http://127.0.0.1:{unused_tcp_port}")
    # The clock of the market stands an hour after the first.
    house.receive(match(1), match(2, at=3600))
    house.dbt("run")
    with medallion("simulate", "--port", str(unused_tcp_port)) as simulator:
        simulator.wait_for(lambda: "ws://" in simulator.said)
        done = definitions.resolve_job_def("fetch_candles").execute_in_process(instance=instance)
    [told] = done.get_asset_materialization_events()
    assert told.asset_key == dg.AssetKey(["bronze", "coinbase_candles_raw"])
    answers = house.one("select count(*) as n from bronze.coinbase_candles_raw")["n"]
    assert answers > 0
    metadata = told.step_materialization_data.materialization.metadata
    assert (metadata["answers"].value, metadata["refused"].value) == (answers, 0)


def test_products_are_fetched_over_rest(
    definitions: dg.Definitions,
    house: Lakehouse,
    instance: dg.DagsterInstance,
    medallion: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    unused_tcp_port: int,
) -> None:
    monkeypatch.setenv("COINBASE_REST_URL", f"http://127.0.0.1:{unused_tcp_port}")
    with medallion("simulate", "--port", str(unused_tcp_port)) as simulator:
        simulator.wait_for(lambda: "ws://" in simulator.said)
        job = definitions.resolve_job_def("product_catalogue")
        done = job.execute_in_process(instance=instance)
    [told] = done.asset_materializations_for_node("exchange_products")
    assert told.asset_key == dg.AssetKey(["bronze", "coinbase_products_raw"])
    assert told.metadata["products"].value == 13
    assert house.one(
        "select jsonb_array_length(payload) as products from bronze.coinbase_products_raw"
    ) == {"products": 13}
