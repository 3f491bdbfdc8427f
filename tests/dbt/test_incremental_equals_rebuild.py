"""Laws that hold whatever arrives: batches, their order and duplicates leave no trace in gold."""

from __future__ import annotations

from datetime import timedelta
from itertools import groupby, pairwise
from operator import attrgetter
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.candles import SECONDS, Candle, candles, query
from tests.conftest import Server
from tests.dbt.conftest import NOON, Dbt, Lakehouse, match

pytestmark = pytest.mark.postgres18_only

PRODUCTS = ["BTC-USD", "ETH-USD", "PEPE-USD"]
HOUR = 3600
# The same in each run; shrinking would take hundreds of builds.
LAW = settings(
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)

# Few of each, so that trades meet: in a minute, at the edges of longer candles, in one microsecond.
times = st.one_of(
    st.sampled_from([0, 59.999999, 60, 299, 300, 899.5, HOUR, 6 * HOUR - 0.000001, 12 * HOUR]),
    st.integers(0, 240),
    st.integers(-13 * HOUR, 13 * HOUR),
)
prices = st.sampled_from(["100", "99.99", "100.01", "0.00000409", "83420.21", "1e2"])
sizes = st.sampled_from(["0.5", "0.00000001", "12000000000", "3", "1.50"])
sides = st.sampled_from(["buy", "sell"])
trade_ids = st.integers(1, 30)
BAD = [
    {"price": "abc"}, {"price": "-1"}, {"size": None}, {"side": "hold"}, {"time": "yesterday"},
    {"trade_id": None}, {"product_id": "btc"}, {"time": "2999-01-01T00:00:00Z"},
]  # fmt: skip


class Sent(NamedTuple):
    """A frame in few words: what differs from frame to frame."""

    trade_id: int
    product_id: str
    price: str
    size: str
    side: str
    at: float
    spoiled: dict[str, Any]

    def frame(self) -> dict[str, Any]:
        fields = self._asdict() | self.spoiled
        del fields["spoiled"]
        return match(self.trade_id, **fields)


def sent(spoiled: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[Sent]:
    products = st.sampled_from(PRODUCTS)
    return st.builds(Sent, trade_ids, products, prices, sizes, sides, times, spoiled)


trades = sent(st.just({}))
# Ids collide, so many a later trade is a duplicate that disagrees.
batches = st.lists(sent(st.sampled_from([{}] * 3 * len(BAD) + BAD)), min_size=20, max_size=40)
answers = st.lists(
    st.tuples(
        st.sampled_from([60, HOUR]),
        st.sampled_from(PRODUCTS),
        st.integers(-1, 4),
        st.lists(st.tuples(st.integers(0, 4), prices), max_size=5),
    ),
    max_size=4,
)
SOME_MODELS = [
    [], ["coinbase_candles"], ["candle_reconciliation"], ["coinbase_trades+"],
    ["coinbase_trades", "ohlc_1m"], ["coinbase_trades"], ["ohlc_1m+"],
    ["ohlc_5m", "ohlc_1h"], ["ohlc_1d", "daily_kpis"], ["coinbase_trades_quarantine"],
]  # fmt: skip


@settings(LAW, max_examples=4)
@given(
    stories=st.lists(
        st.tuples(batches, answers, st.lists(st.sampled_from(SOME_MODELS), min_size=1, max_size=2)),
        min_size=2,
        max_size=3,
    )
)
def test_incremental_builds_leave_what_one_build_of_everything_does(
    server: Server, dbt: Dbt, stories: list[tuple[list[Sent], list[Any], list[list[str]]]]
) -> None:
    lakehouse = Lakehouse(server.fresh_database(), dbt)
    for product_id in PRODUCTS:
        lakehouse.record_gap("{[1,31)}", product_id=product_id)
    lakehouse.dbt("run")
    for batch, asked, selections in stories:
        lakehouse.receive(*(each.frame() for each in batch))
        for granularity, product_id, first, told in asked:
            start = NOON + timedelta(seconds=first * granularity)
            at = int(start.timestamp())
            lakehouse.answer(
                start,
                start + timedelta(seconds=2 * granularity),
                *([at + place * granularity, *[float(price)] * 5] for place, price in told),
                granularity=granularity,
                product_id=product_id,
            )
        for selection in selections:
            run = lakehouse.dbt("run", *(["-s", *selection] if selection else []))
            assert run.failed == set()
    built = lakehouse.dbt("build", "--selector", "full", "--vars", "{gap_grace_seconds: 0}")
    # The exchange made its candles up.
    assert built.failed <= {"candles_agree_with_the_exchange"}
    step_by_step = lakehouse.fingerprints()
    assert {
        "silver.coinbase_trades", "silver.coinbase_candles", "gold.ohlc_1d", "gold.daily_kpis",
        "gold.trade_completeness", "gold.candle_reconciliation",
    } <= step_by_step.keys()  # fmt: skip
    lakehouse.dbt("run", "--full-refresh")
    assert lakehouse.fingerprints() == step_by_step


@st.composite
def arrivals(draw: st.DrawFn) -> tuple[list[Sent], list[list[Sent]]]:
    """Return distinct trades, and batches in which each arrives in any place, some repeatedly."""
    made = draw(
        st.lists(
            trades,
            min_size=15,
            max_size=36,
            unique_by=lambda trade: (trade.product_id, trade.trade_id),
        )
    )
    repeated = draw(st.lists(st.sampled_from(made), min_size=3, max_size=20))
    order = draw(st.permutations(made + repeated))
    cuts = sorted(draw(st.lists(st.integers(0, len(order)), min_size=1, max_size=2)))
    edges = [0, *cuts, len(order)]
    return made, [order[low:high] for low, high in pairwise(edges)]


@settings(LAW, max_examples=4)
@given(arrivals=arrivals())
def test_any_order_any_batches_and_any_duplicates_give_the_same_gold(
    server: Server, dbt: Dbt, arrivals: tuple[list[Sent], list[list[Sent]]]
) -> None:
    made, batches = arrivals
    lakehouse = Lakehouse(server.fresh_database(), dbt)
    for batch in batches:
        if batch:
            lakehouse.receive(*(trade.frame() for trade in batch))
        assert lakehouse.dbt("run").failed == set()
    frames = [trade.frame() for trade in made]
    for table in SECONDS:
        assert [Candle(**row) for row in lakehouse.rows(query(table))] == candles(frames, table)
    for product_id, missing in missing_ids(candles(frames, "ohlc_1d")).items():
        assert lakehouse.one(
            "select sum(missing) as n from gold.trade_completeness where product_id = $1",
            product_id,
        ) == {"n": missing}
    assert lakehouse.rows("select * from silver.coinbase_trades_quarantine") == []


def missing_ids(days: list[Candle]) -> dict[str, int]:
    """Return per product how many ids lack, from its first day's first to its last day's last."""
    by_product = groupby(days, key=attrgetter("product_id"))
    return {
        product_id: candles[-1].last_trade_id
        - candles[0].first_trade_id
        + 1
        - sum(candle.trade_count for candle in candles)
        for product_id, candles in ((product_id, list(group)) for product_id, group in by_product)
    }


def test_a_candle_reads_the_window_and_not_the_whole_table(lakehouse: Lakehouse, dbt: Dbt) -> None:
    lakehouse.receive(match(1))
    lakehouse.build()
    compiled = dbt.target / "compiled" / "medallion" / "models" / "gold"
    for table in SECONDS:
        model = (compiled / f"{table}.sql").read_text()
        plan = "\n".join(row[0] for row in lakehouse.database.fetch(f"explain {model}"))
        # A CTE that the plan scans was written out first, all of it.
        assert "CTE Scan" not in plan, table
