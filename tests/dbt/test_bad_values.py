"""Whatever a field holds, its trade is quarantined with the reason, on every supported server.

PostgreSQL 15 tells a bad time by another way than later ones.
"""

from __future__ import annotations

from tests.dbt.conftest import Lakehouse, match

BAD_VALUES = {
    "invalid_price": [
        {"price": value}
        for value in ("abc", "NaN", "Infinity", "", " 100", "1,5", "1e999", "0x10", "9" * 41, [1])
    ],
    "non_positive_price": [{"price": value} for value in ("-1", "0", "0.00", -5, "-1e-9")],
    "missing_price": [{"price": None}],
    "invalid_size": [{"size": value} for value in ("abc", "NaN", "1.", ".5", "9" * 200000)],
    "non_positive_size": [{"size": "-0.5"}, {"size": "0"}],
    "missing_size": [{"size": None}],
    "invalid_side": [{"side": value} for value in ("", "hold", 1)],
    "missing_side": [{"side": None}],
    "invalid_time": [
        {"time": value}
        for value in (
            "yesterday", "now", "infinity", "2026-13-01T00:00:00Z", "2026-02-30T00:00:00Z",
            "2026-01-01T25:00:00Z", "2026-01-01T00:00:00", "2026-01-01", 1790000000,
            "2026-01-01T00:00:00+99:00", "0000-01-01T00:00:00Z", "9" * 39 + "T1Z",
            "01-02-2026T00:00:00Z", "Tue 2026-03-03T00:00:00",
        )
    ],
    "implausible_time": [
        {"time": "1970-01-01T00:00:00Z"},
        {"time": "2999-01-01T00:00:00Z"},
        {"time": "294276-12-31T23:59:59Z"},
    ],
    "missing_time": [{"time": None}],
    "invalid_trade_id": [{"trade_id": value} for value in ("x", "-1", "1.5", "9" * 19)],
    "missing_trade_id": [{"trade_id": None}],
    "invalid_product_id": [{"product_id": value} for value in ("", "btc-usd", "BTC", {"a": 1})],
    "missing_product_id": [{"product_id": None}],
}  # fmt: skip


def test_every_bad_value_is_quarantined_with_its_reason_and_the_rest_goes_on(
    lakehouse: Lakehouse,
) -> None:
    cases = [(reason, change) for reason, changes in BAD_VALUES.items() for change in changes]
    for number, (_, change) in enumerate(cases):
        lakehouse.receive(match(1000 + number, **change))
    lakehouse.receive({}, {"type": "match"}, match(1))
    build = lakehouse.dbt("build")
    assert build.failed == set()
    assert build.warned >= {"quarantine_share"}
    quarantined = lakehouse.rows(
        "select bronze_id, reject_reasons from silver.coinbase_trades_quarantine order by bronze_id"
    )
    assert [row["reject_reasons"] for row in quarantined[: len(cases)]] == [
        [reason] for reason, _ in cases
    ]
    everything_missing = [
        f"missing_{field}" for field in ("product_id", "trade_id", "price", "size", "side", "time")
    ]
    assert [row["reject_reasons"] for row in quarantined[len(cases) :]] == [everything_missing] * 2
    assert lakehouse.one("select trade_id from silver.coinbase_trades") == {"trade_id": 1}


def test_several_faults_of_one_trade_are_all_named(lakehouse: Lakehouse) -> None:
    lakehouse.receive(match(1, price="-1", size="abc", side=None), match(2))
    lakehouse.build()
    assert lakehouse.one("select reject_reasons from silver.coinbase_trades_quarantine") == {
        "reject_reasons": ["invalid_size", "missing_side", "non_positive_price"]
    }


ON_ALL_CORES = """
alter database {name} set min_parallel_table_scan_size = 0;
alter database {name} set parallel_setup_cost = 0;
alter database {name} set parallel_tuple_cost = 0;
"""
REJECTED = "select bronze_id, reject_reasons from silver.coinbase_trades_quarantine order by 1"


def test_a_full_refresh_on_all_cores_quarantines_the_same(lakehouse: Lakehouse) -> None:
    changes = [change for changes in BAD_VALUES.values() for change in changes]
    frames = [match(1000 + number, **change) for number, change in enumerate(changes)]
    lakehouse.receive(match(1), *frames)
    models = ("run", "--full-refresh", "--select", "+coinbase_trades_quarantine")
    assert lakehouse.dbt(*models).failed == set()
    rejected = lakehouse.rows(REJECTED)
    lakehouse.database.execute(ON_ALL_CORES.format(name=lakehouse.database.name))
    assert lakehouse.dbt(*models).failed == set()
    assert lakehouse.rows(REJECTED) == rejected
    assert len(rejected) == len(frames)
