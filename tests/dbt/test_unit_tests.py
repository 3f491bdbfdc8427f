"""The unit tests of the models: each passes, and no model is without."""

from __future__ import annotations

import pytest

from tests.dbt.conftest import Dbt, Lakehouse

pytestmark = pytest.mark.postgres18_only


def test_every_unit_test_passes(lakehouse: Lakehouse, dbt: Dbt) -> None:
    lakehouse.build()  # A unit test takes the types of its rows from the tables.
    names = {test.name for test in dbt.manifest.unit_tests.values()}
    build = lakehouse.dbt("test", "--selector", "unit")
    assert {name: build.messages[name] for name in names if build.statuses[name] != "pass"} == {}


def test_every_model_has_a_unit_test(dbt: Dbt) -> None:
    tested = {test.model for test in dbt.manifest.unit_tests.values()}
    models = {node.name for node in dbt.manifest.nodes.values() if node.resource_type == "model"}
    assert models - tested == set()


def test_a_build_leaves_unit_tests_out(lakehouse: Lakehouse, dbt: Dbt) -> None:
    names = {test.name for test in dbt.manifest.unit_tests.values()}
    assert names.isdisjoint(lakehouse.build().statuses)
