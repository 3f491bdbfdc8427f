"""The continuous transform: what its user sees of it, and what Dagster is told."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import structlog

from orchestration.bronze import look_at_bronze
from orchestration.transform import AGAIN_SECONDS, ASSET_SECONDS, Reporter
from tests.conftest import Command, Database, Server
from tests.dbt.conftest import Lakehouse, match, product
from warehouse.settings import WarehouseError

pytestmark = pytest.mark.postgres18_only

CANDLES = dg.AssetKey(["gold", "ohlc_1m"])
NO_DUPLICATES = dg.AssetCheckKey(CANDLES, "ohlc_1m_no_duplicates")


def written(rows: int) -> dg.AssetMaterialization:
    return dg.AssetMaterialization(CANDLES, metadata={"rows_written": rows})


def verdict(passed: bool) -> dg.AssetCheckEvaluation:
    return dg.AssetCheckEvaluation(
        asset_key=CANDLES, check_name=NO_DUPLICATES.name, passed=passed, metadata={}
    )


def failed(error: str) -> dg.AssetObservation:
    return dg.AssetObservation(CANDLES, metadata={"error": error})


def rows_told(instance: dg.DagsterInstance) -> list[Any]:
    """Return the rows written that Dagster was told of, oldest first."""
    found = instance.fetch_materializations(CANDLES, limit=100).records[::-1]
    events = [record.asset_materialization for record in found]
    return [event.metadata["rows_written"].value for event in events if event]


def verdicts_told(instance: dg.DagsterInstance) -> list[bool]:
    history = instance.event_log_storage.get_asset_check_execution_history(NO_DUPLICATES, limit=100)
    events = [record.event.dagster_event for record in history[::-1] if record.event]
    return [event.asset_check_evaluation_data.passed for event in events if event]


def test_an_asset_is_told_of_once_a_minute_with_all_rows_since(instance: Any) -> None:
    reporter = Reporter(instance)
    reporter.report([written(1)], now=100)
    for second in (105, 110):
        reporter.report([written(10)], now=second)
    assert rows_told(instance) == [1]
    reporter.report([], now=100 + ASSET_SECONDS)
    assert rows_told(instance) == [1, 20]
    reporter.report([], now=100 + 2 * ASSET_SECONDS)
    assert rows_told(instance) == [1, 20]


def test_a_verdict_is_told_when_it_changes_and_again_now_and_then(instance: Any) -> None:
    reporter = Reporter(instance)
    for second, passed in enumerate((True, True, False, False, True)):
        reporter.report([verdict(passed)], now=second)
    assert verdicts_told(instance) == [True, False, True]
    reporter.report([verdict(True)], now=4 + AGAIN_SECONDS)
    assert verdicts_told(instance) == [True, False, True, True]


def test_what_dagster_could_not_take_it_is_told_later(tmp_path: Path) -> None:
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        reporter = Reporter(instance)
        store = tmp_path / "history" / "runs"
        away = store.rename(tmp_path / "away")
        with structlog.testing.capture_logs() as logs:
            reporter.report([verdict(True), written(1)], now=0)
        assert [entry["event"] for entry in logs] == ["dagster_not_told"]
        away.rename(store)
        reporter.report([written(2)], now=1)
        assert rows_told(instance) == [3]


def errors_told(instance: dg.DagsterInstance) -> list[Any]:
    found = instance.fetch_observations(CANDLES, limit=100).records[::-1]
    events = [record.asset_observation for record in found]
    return [event.metadata["error"].value for event in events if event]


def test_an_error_is_told_when_it_changes_and_again_after_the_model_was_built(
    instance: Any,
) -> None:
    reporter = Reporter(instance)
    for second, event in enumerate(
        (failed("a"), failed("a"), failed("b"), written(1), failed("b"))
    ):
        reporter.report([event], now=second)
    assert errors_told(instance) == ["a", "b", "b"]
    reporter.report([failed("b")], now=5 + AGAIN_SECONDS)
    assert errors_told(instance) == ["a", "b", "b", "b"]


def builds(command: Command) -> int:
    return sum(event["event"] == "built" for event in command.events())


def test_new_trades_reach_gold_until_it_is_stopped(
    house: Lakehouse, server: Server, medallion: Callable[..., Any]
) -> None:
    def candles() -> int:
        if house.one("select to_regclass('gold.ohlc_1m') is null as missing")["missing"]:
            return 0
        count: int = house.one("select count(*) as n from gold.ohlc_1m")["n"]
        return count

    with medallion("transform", "--every", "0.5s", **house.database.environment()) as command:
        # At the start it builds, and nothing is new after it.
        command.wait_for(lambda: builds(command) == 1)
        house.receive(match(1))
        command.wait_for(lambda: candles() == 1)
        command.wait_for(lambda: builds(command) == 2)
        house.list_products(product("BTC-USD"))
        command.wait_for(lambda: builds(command) == 3)
        assert house.one("select product_id from gold.dim_products") == {"product_id": "BTC-USD"}
        runs = house.rows("select models from ops.pipeline_runs order by start_ts")
        # The catalogue is left out while no new one has come.
        everything, *without, again = [run["models"] for run in runs]
        assert (without, again) == ([everything - 3], everything)

        server.embedded.stop()
        try:
            command.wait_for_event("database_away", times=2)
        finally:
            server.embedded.start()
        command.wait_for_event("database_back")
        house.receive(match(2, at=61))
        command.wait_for(lambda: candles() == 2)

        house.database.execute(
            "alter table gold.ohlc_1m add constraint broken check (open < 200) not valid"
        )
        house.receive(match(3, at=122, price="200"))
        command.wait_for_event("build_failed")
        house.database.execute("alter table gold.ohlc_1m drop constraint broken")
        house.receive(match(4, at=123))
        command.wait_for(lambda: candles() == 3)
        code = command.end(signal.SIGTERM)

    assert code == 0
    assert "Stopped after 6 builds." in command.said
    assert "Traceback" not in command.said
    # Nothing new, nothing built.
    statuses = house.rows("select status from ops.pipeline_runs order by start_ts")
    assert [row["status"] for row in statuses] == ["success"] * 4 + ["failed", "success"]
    with dg.DagsterInstance.from_config(str(server.settings.medallion_home / "dagster")) as told:
        assert sum(rows_told(told)) == 3
        [error] = errors_told(told)
        assert 'violates check constraint "broken"' in error
        assert verdicts_told(told) == [True]


@pytest.mark.parametrize(
    ("every", "told"), [("5", "give seconds or minutes"), ("0s", "give seconds or minutes")]
)
def test_an_interval_that_is_none_exits_with_2(
    medallion: Callable[..., Any], every: str, told: str
) -> None:
    with medallion("transform", "--every", every) as command:
        assert command.end() == 2
    assert told in command.said


def test_a_database_that_is_not_migrated_is_told_how_to_become_it(database: Database) -> None:
    database.execute("drop schema ops cascade")
    with pytest.raises(WarehouseError, match="Run `medallion migrate`"):
        asyncio.run(look_at_bronze(database.info("medallion_transform")))
