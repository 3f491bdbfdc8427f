"""The product catalogue: its versions, and the trades that are held against it."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from tests.dbt.conftest import NOON, Lakehouse, match, product

pytestmark = pytest.mark.postgres18_only

VERSIONS = "select * from silver.products where product_id = $1 order by valid_from"
OFF = "select trade_id, price_is_off, size_is_off from gold.off_increment_trades order by trade_id"
AGAINST_THE_CATALOGUE = {"trades_of_unknown_products", "trades_fit_their_increments"}


def at(hour: float) -> datetime:
    return NOON + timedelta(hours=hour)


def versions(lakehouse: Lakehouse, product_id: str) -> list[tuple[Any, ...]]:
    return [
        (row["valid_from"], row["valid_until"], f"{row['quote_increment']:f}", row["is_current"])
        for row in lakehouse.rows(VERSIONS, product_id)
    ]


def listing(lakehouse: Lakehouse, product_id: str) -> dict[str, Any]:
    return lakehouse.one(
        "select is_listed, first_seen_at, changed_at, delisted_at from gold.dim_products "
        "where product_id = $1",
        product_id,
    )


def test_a_change_begins_a_version_and_a_product_that_is_gone_has_none(
    lakehouse: Lakehouse,
) -> None:
    bitcoin, finer = product("BTC-USD"), product("BTC-USD", quote_increment="0.001")
    for hour, catalogue in enumerate(
        ([bitcoin, product("GONE-USD")], [bitcoin, product("GONE-USD")], [finer], [finer])
    ):
        lakehouse.list_products(*catalogue, hour=hour)
        lakehouse.build()
    assert versions(lakehouse, "BTC-USD") == [
        (at(0), at(2), "0.01", False),
        (at(2), None, "0.001", True),
    ]
    assert versions(lakehouse, "GONE-USD") == [(at(0), at(2), "0.01", False)]
    assert listing(lakehouse, "BTC-USD") == {
        "is_listed": True, "first_seen_at": at(0), "changed_at": at(2), "delisted_at": None
    }  # fmt: skip
    assert listing(lakehouse, "GONE-USD") == {
        "is_listed": False, "first_seen_at": at(0), "changed_at": at(0), "delisted_at": at(2)
    }  # fmt: skip

    lakehouse.list_products(finer, product("GONE-USD"), hour=4)
    lakehouse.build()
    assert versions(lakehouse, "GONE-USD")[1:] == [(at(4), None, "0.01", True)]
    assert listing(lakehouse, "GONE-USD")["delisted_at"] is None

    step_by_step = lakehouse.fingerprints()
    lakehouse.build("--full-refresh")
    assert lakehouse.fingerprints() == step_by_step


def test_new_trades_are_held_against_the_catalogue_once(lakehouse: Lakehouse) -> None:
    lakehouse.list_products(product("BTC-USD"), hour=-1)
    lakehouse.list_products(product("BTC-USD"), product("ODD-USD", quote_increment="a cent"))
    lakehouse.receive(
        match(1, price="100.01", size="0.00000001"),
        match(2, price="100.001"),
        match(3, size="0.000000001"),
        match(1, product_id="NEW-USD"),
        match(1, product_id="ODD-USD", price="0.0001"),
    )
    build = lakehouse.build()
    assert build.warned >= AGAINST_THE_CATALOGUE | {"catalogue_is_readable"}
    assert lakehouse.rows(OFF) == [
        {"trade_id": 2, "price_is_off": True, "size_is_off": False},
        {"trade_id": 3, "price_is_off": False, "size_is_off": True},
    ]
    readers = "select trade_id from gold.off_increment_trades, gold.dim_products"
    assert len(lakehouse.database.fetch(readers, role="medallion_reader")) == 4

    lakehouse.receive(match(4))
    assert not lakehouse.build().warned & AGAINST_THE_CATALOGUE


def test_without_a_catalogue_that_is_said_and_no_trade_is_flagged(lakehouse: Lakehouse) -> None:
    lakehouse.receive(match(1, price="100.001"))
    # Nor does it take a snapshot, which `dbt run` makes none of.
    assert lakehouse.dbt("run").failed == set()
    build = lakehouse.build()
    assert "catalogue_is_recent" in build.warned
    assert not build.warned & {"catalogue_is_readable", *AGAINST_THE_CATALOGUE}
    assert lakehouse.rows(OFF) == []


def test_builds_between_two_catalogues_leave_it_out_and_hold_trades_against_it(
    lakehouse: Lakehouse,
) -> None:
    lakehouse.list_products(product("BTC-USD"))
    lakehouse.build()
    lakehouse.receive(match(1, price="100.001"), match(1, product_id="NEW-USD"))
    build = lakehouse.build("--selector", "without_reference")
    reference = {"stg_coinbase__products", "coinbase_products_snapshot", "products", "dim_products"}
    assert not build.statuses.keys() & {*reference, "products_have_one_version_at_a_time"}
    assert build.warned >= AGAINST_THE_CATALOGUE
    checked = lakehouse.rows("select distinct checked, high from ops.model_watermarks")
    assert checked == [{"checked": 2, "high": 2}]
