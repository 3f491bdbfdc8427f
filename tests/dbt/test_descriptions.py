"""Nothing in the dbt project is without a description, and the descriptions reach the database."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.dbt.conftest import PROJECT, Dbt, Lakehouse

pytestmark = pytest.mark.postgres18_only

SIGNATURE = re.compile(r"{% (?:macro|test) (\w+)\(([^)]*)\)")


def ours(dbt: Dbt) -> Iterator[tuple[str, Any]]:
    """Yield everything of this project that can have a description, by its unique id."""
    manifest = dbt.manifest
    for resources in (
        manifest.nodes,
        manifest.sources,
        manifest.macros,
        manifest.exposures,
        manifest.metrics,
        manifest.semantic_models,
        manifest.groups,
        manifest.unit_tests,
    ):
        for unique_id, resource in resources.items():
            if resource.package_name == "medallion" and resource.resource_type != "operation":
                yield unique_id, resource


def test_everything_has_a_description(dbt: Dbt) -> None:
    bare = [unique_id for unique_id, resource in ours(dbt) if not resource.description.strip()]
    assert bare == []


def test_every_column_has_a_description(dbt: Dbt) -> None:
    bare = [
        f"{unique_id}.{column.name}"
        for unique_id, resource in ours(dbt)
        for column in getattr(resource, "columns", {}).values()
        if not column.description.strip()
    ]
    assert bare == []


def test_every_argument_of_a_macro_has_a_description(dbt: Dbt) -> None:
    # dbt's own validate_macro_args knows no generic tests.
    in_sql = {
        name: [argument.split("=")[0].strip() for argument in arguments.split(",") if argument]
        for path in (*PROJECT.glob("macros/*.sql"), *PROJECT.glob("tests/generic/*.sql"))
        for name, arguments in SIGNATURE.findall(path.read_text())
    }
    described = {
        macro.name.removeprefix("test_"): [
            argument.name for argument in macro.arguments if (argument.description or "").strip()
        ]
        for _, macro in ours(dbt)
        if macro.resource_type == "macro" and not macro.name.startswith("materialization_")
    }
    assert described == in_sql


def test_tables_have_the_columns_types_and_comments_that_are_described(
    lakehouse: Lakehouse, dbt: Dbt
) -> None:
    lakehouse.build()
    described = {
        f"{resource.schema}.{resource.identifier}.{column.name}": (
            {"timestamptz": "timestamp with time zone"}.get(column.data_type, column.data_type),
            column.description,
        )
        for _, resource in ours(dbt)
        for column in getattr(resource, "columns", {}).values()
    }
    columns = lakehouse.rows(
        """
        select
            concat_ws('.', relnamespace::regnamespace, relname, attname) as name,
            format_type(atttypid, atttypmod) as data_type,
            col_description(pg_class.oid, attnum) as description
        from pg_class
        inner join pg_attribute on attrelid = pg_class.oid and attnum > 0 and not attisdropped
        where
            (
                relnamespace::regnamespace::text in ('bronze', 'silver', 'gold')
                -- The others there are of migrations.
                or relnamespace = 'ops'::regnamespace
                and relname in ('quarantined_trades', 'trade_arrivals')
            )
            and relkind in ('r', 'p', 'v')
            and not relispartition
        """
    )
    in_database = {
        column["name"]: (column["data_type"], column["description"]) for column in columns
    }
    assert in_database == described


def test_every_table_and_column_has_a_comment_that_tools_show(lakehouse: Lakehouse) -> None:
    lakehouse.build()
    bare = lakehouse.rows(
        """
        with commented as (
            select attrelid as oid, attnum, attname from pg_attribute
            where attnum > 0 and not attisdropped
            union all
            select oid, 0, 'the table' from pg_class
        )

        select concat_ws('.', relnamespace::regnamespace, relname, attname) as name
        from pg_class
        inner join commented using (oid)
        where
            relnamespace::regnamespace::text in ('bronze', 'silver', 'gold', 'ops')
            and relkind in ('r', 'p', 'v')
            and not relispartition
            and col_description(oid, attnum) is null
        """
    )
    assert bare == []


def test_the_lineage_leads_from_bronze_to_every_report(dbt: Dbt) -> None:
    parents = dbt.manifest.parent_map
    reports = {f"model.medallion.{path.stem}" for path in PROJECT.glob("models/gold/*.sql")}
    seen: set[str] = set()
    to_visit = list(dbt.manifest.exposures)
    while to_visit:
        unique_id = to_visit.pop()
        seen.add(unique_id)
        to_visit.extend(parents[unique_id])
    assert seen >= reports
    assert seen >= {
        "source.medallion.coinbase.coinbase_trades_raw",
        "model.medallion.stg_coinbase__exchange_matches",
        "model.medallion.stg_coinbase__advanced_market_trades",
        "model.medallion.stg_coinbase__rest_trades",
        "model.medallion.stg_coinbase__trades",
        "model.medallion.coinbase_trades",
        "source.medallion.coinbase.coinbase_products_raw",
        "snapshot.medallion.coinbase_products_snapshot",
    }
