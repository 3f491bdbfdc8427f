"""What the daemon asks each minute: is anything due, and how does bronze stand."""

from __future__ import annotations

from typing import Any

import dagster as dg
import pytest

from tests.dbt.conftest import Lakehouse, match

pytestmark = pytest.mark.postgres18_only

BRONZE = dg.AssetKey(["bronze", "coinbase_trades_raw"])


def built(house: Lakehouse, minutes_ago: int) -> None:
    """Leave what a build leaves that ended so long ago, and read all there is."""
    house.database.execute(
        "insert into ops.pipeline_runs "
        "select gen_random_uuid(), 'build', at, at, 'success', false, 0, 0, 0 "
        f"from (values (now() - interval '{minutes_ago} minutes')) as runs (at);"
        "insert into ops.model_watermarks (model, low, high, checked) "
        "select 'bronze.coinbase_trades_raw', 0, coalesce(max(bronze_id), 0), 0 "
        "from bronze.coinbase_trades_raw "
        "on conflict (model) do update set high = excluded.high"
    )


def test_new_trades_set_off_a_build_no_sooner_than_five_minutes_after_the_last(
    tick: Any, house: Lakehouse
) -> None:
    assert tick("new_trades").skip_message == "Nothing is new in bronze."
    house.receive(match(1))
    assert len(tick("new_trades").run_requests) == 1
    built(house, minutes_ago=4)
    assert tick("new_trades").skip_message == "Nothing is new in bronze."
    house.receive(match(2))
    assert "less than 0:05:00 ago" in tick("new_trades").skip_message
    house.database.execute("update ops.pipeline_runs set end_ts = end_ts - interval '2 minutes'")
    assert len(tick("new_trades").run_requests) == 1


def test_a_build_that_is_running_or_on_its_way_is_not_asked_for_again(
    tick: Any, house: Lakehouse, definitions: dg.Definitions, instance: dg.DagsterInstance
) -> None:
    house.receive(match(1))
    built(house, minutes_ago=10)
    house.receive(match(2))
    house.database.execute("update ops.pipeline_runs set status = 'running', end_ts = null")
    assert "less than 0:05:00 ago" in tick("new_trades").skip_message
    house.database.execute("delete from ops.pipeline_runs")
    run = instance.create_run_for_job(
        definitions.resolve_job_def("build_marts"), status=dg.DagsterRunStatus.STARTED
    )
    assert tick("new_trades").skip_message == "A run is on its way."
    instance.delete_run(run.run_id)
    assert len(tick("new_trades").run_requests) == 1


def test_frames_that_came_are_told_with_how_bronze_stands(tick: Any, house: Lakehouse) -> None:
    house.receive(match(1), match(2), match(5))
    house.record_gap("{[3,5)}")
    house.database.execute("analyze bronze.coinbase_trades_raw")
    first = tick("bronze_watch")
    observed, told = first.asset_events
    assert isinstance(observed, dg.AssetObservation)
    assert isinstance(told, dg.AssetMaterialization)
    assert observed.asset_key == told.asset_key == BRONZE
    assert observed.metadata == told.metadata
    metadata = {name: entry.value for name, entry in told.metadata.items()}
    newest = house.one(
        "select extract(epoch from max(received_at))::float8 as at from bronze.coinbase_trades_raw"
    )["at"]
    assert metadata.pop("newest_frame") == pytest.approx(newest)
    assert metadata == {
        "dagster/row_count": 3,
        "frames_not_yet_transformed": 3,
        "open_gaps": 1,
        "missing_trades": 2,
    }

    [again] = tick("bronze_watch", cursor=first.cursor).asset_events
    # Freshness goes by materializations: nothing came.
    assert isinstance(again, dg.AssetObservation)


def test_an_empty_bronze_is_told_as_such(tick: Any) -> None:
    [observed] = tick("bronze_watch").asset_events
    assert isinstance(observed, dg.AssetObservation)
    assert observed.metadata["frames_not_yet_transformed"].value == 0
    assert "newest_frame" not in observed.metadata


def test_bronze_can_be_looked_at_by_hand(
    definitions: dg.Definitions, house: Lakehouse, instance: dg.DagsterInstance
) -> None:
    house.receive(match(1))
    # Alone: where the models are, bronze is checked by dbt as well.
    alone = dg.Definitions(assets=[definitions.resolve_assets_def(BRONZE)])
    job = alone.resolve_implicit_global_asset_job_def()
    seen = job.execute_in_process(instance=instance)
    [observation] = seen.asset_observations_for_node("bronze_trades")
    assert observation.metadata["frames_not_yet_transformed"].value == 1


def test_repair_is_asked_for_where_a_gap_is_open(
    definitions: dg.Definitions, house: Lakehouse, instance: dg.DagsterInstance
) -> None:
    schedule = definitions.get_repository_def().get_schedule_def("hourly_repair")
    with dg.build_schedule_context(instance) as context:
        assert schedule.evaluate_tick(context).skip_message == "No gap is open."
        house.record_gap("{[3,5)}")
        assert len(schedule.evaluate_tick(context).run_requests) == 1


@pytest.mark.parametrize("sensor", ["new_trades", "bronze_watch"])
def test_a_database_that_is_away_is_said_in_the_tick(
    tick: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, unused_tcp_port: int, sensor: str
) -> None:
    monkeypatch.setenv("MEDALLION_HOME", str(tmp_path))
    monkeypatch.setenv("PGPORT", str(unused_tcp_port))
    assert f"can't be reached on 127.0.0.1:{unused_tcp_port}" in tick(sensor).skip_message
