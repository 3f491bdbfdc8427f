"""Dagster's definitions, loaded once, and a lakehouse that they find."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dagster as dg
import pytest

from tests.conftest import Database, Server
from tests.dbt.conftest import Lakehouse


@pytest.fixture(scope="session")
def definitions(server: Server) -> dg.Definitions:
    """Load what `medallion dagster` loads."""
    database = Database(server.settings.model_copy(update={"pgdatabase": "crypto_dw"}))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in database.environment().items():
            patch.setenv(name, value)
        from orchestration.definitions import defs  # noqa: PLC0415  (reads the manifest)

        return defs()


@pytest.fixture
def house(lakehouse: Lakehouse, monkeypatch: pytest.MonkeyPatch) -> Lakehouse:
    """Lead the settings to the test's database."""
    for name, value in lakehouse.database.environment().items():
        monkeypatch.setenv(name, value)
    return lakehouse


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    """Keep what Dagster is told in memory."""
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture
def tick(definitions: dg.Definitions, house: Lakehouse, instance: dg.DagsterInstance) -> Any:
    """Evaluate a sensor as the daemon does."""
    repository = definitions.get_repository_def()

    def evaluate(name: str, cursor: str | None = None) -> Any:
        sensor = repository.get_sensor_def(name)
        with dg.build_sensor_context(
            instance, cursor=cursor, repository_def=repository, sensor_name=name
        ) as context:
            return sensor.evaluate_tick(context)

    return evaluate
