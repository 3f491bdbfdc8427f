"""`.env.example` says of each setting what the code does."""

from __future__ import annotations

import re

import pytest

from ingestion.settings import IngestionSettings
from orchestration.settings import OrchestrationSettings
from tests.conftest import ROOT
from warehouse.settings import WarehouseSettings

LINES = re.findall(r"(?m)^#([A-Z_]+)=(.*)$", (ROOT / ".env.example").read_text())


def test_every_setting_is_documented_and_no_other() -> None:
    fields = [
        *WarehouseSettings.model_fields,
        *IngestionSettings.model_fields,
        *OrchestrationSettings.model_fields,
    ]
    assert sorted(name for name, _ in LINES) == sorted(name.upper() for name in fields)


def test_the_documented_values_are_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPOOL_DIR")
    without = IngestionSettings(), OrchestrationSettings(), WarehouseSettings()
    for name, value in LINES:
        # The embedded server finds a port of its own; 5432 is that of a server of your own.
        if name not in {"MEDALLION_HOME", "PGPORT"}:
            monkeypatch.setenv(name, value)
    assert (IngestionSettings(), OrchestrationSettings(), WarehouseSettings()) == without
