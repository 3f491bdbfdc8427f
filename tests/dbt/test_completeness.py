"""Which trades are missing, on which day, and whether each is explained."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from tests.conftest import Server
from tests.dbt.conftest import NOON, Build, Dbt, Lakehouse, advanced_frame, match

DAY = 24 * 3600
TODAY = NOON.date()
TOMORROW = TODAY + timedelta(days=1)
CHECK = "missing_trades_are_explained"
COMPLETENESS = (
    "select day, first_trade_id, last_trade_id, trades, missing, repaired, share_complete "
    "from gold.trade_completeness where product_id = $1 order by day"
)
Range = tuple[date, int, int]


def build(lakehouse: Lakehouse, *arguments: str) -> Build:
    """Build what the check reads, and judge whatever was read: no trade may be late."""
    only = ["-s", f"+{CHECK}", "--indirect-selection", "empty"]
    return lakehouse.dbt("build", *only, "--vars", "{gap_grace_seconds: 0}", *arguments)


def unexplained(lakehouse: Lakehouse, dbt: Dbt) -> dict[str, list[Range]]:
    """Return what the check named when it was last run: per product, days and ranges of ids."""
    compiled = dbt.target / "compiled" / "medallion" / "tests" / "gold" / f"{CHECK}.sql"
    named: dict[str, list[Range]] = {}
    for row in lakehouse.rows(compiled.read_text()):
        product_id, *found = row.values()
        named.setdefault(product_id, []).append(tuple(found))
    return {product_id: sorted(ranges) for product_id, ranges in named.items()}


@dataclass(frozen=True)
class Story:
    """What came of a product, which of its ids a gap explains, and which are left."""

    came: list[dict[str, Any]]
    open: str = "{}"
    absent: str = "{}"
    left: list[Range] | None = None


def trades(*trade_ids: int, at: float = 0) -> list[dict[str, Any]]:
    return [match(trade_id, at=at + trade_id) for trade_id in trade_ids]


STORIES = {
    "nothing is missing": Story(trades(5, 6, 7)),
    "a hole": Story(trades(1, 2, 5, 6), left=[(TODAY, 3, 4)]),
    "two holes": Story(trades(1, 3, 9), left=[(TODAY, 2, 2), (TODAY, 4, 8)]),
    "a hole that is open": Story(trades(1, 2, 5, 6), open="{[3,5)}"),
    "a hole that is absent": Story(trades(1, 2, 5, 6), absent="{[3,5)}"),
    "a hole that is partly either": Story(
        trades(1, 9), open="{[2,4),[7,8)}", absent="{[5,7)}", left=[(TODAY, 4, 4), (TODAY, 8, 8)]
    ),
    "a gap that is wider than the hole": Story(trades(4, 5, 8, 9), open="{[1,20)}"),
    "a gap elsewhere": Story(trades(1, 2, 5, 6), absent="{[7,9)}", left=[(TODAY, 3, 4)]),
    "a gap whose trades came all the same": Story(
        trades(1, 2, 3, 4, 7), absent="{[2,4)}", open="{[4,5)}", left=[(TODAY, 5, 6)]
    ),
    "a hole over midnight": Story(
        trades(1, 2) + trades(6, 7, at=DAY), left=[(TOMORROW, 3, 5)]
    ),
    "a hole over midnight that is open on one side": Story(
        trades(1, 2) + trades(6, 7, at=DAY), open="{[3,5)}", left=[(TOMORROW, 5, 5)]
    ),
    "holes in several days": Story(
        trades(1, 3) + trades(5, 7, at=DAY),
        left=[(TODAY, 2, 2), (TOMORROW, 4, 4), (TOMORROW, 6, 6)],
    ),
    "trades of the next day have the ids before": Story(
        trades(1, 2, 4) + trades(3, 5, at=DAY),
    ),
    "and hide in the count what is missing": Story(
        trades(1, 2, 4) + trades(3, 5, 7, at=DAY), left=[(TOMORROW, 6, 6)]
    ),
    "a day of trades with ids before": Story(
        trades(1, 2, 5) + trades(3, at=DAY), left=[(TODAY, 4, 4)]
    ),
    "a trade in quarantine": Story(
        [match(1), match(2, price="abc"), match(3), match(5, at=DAY)],
        left=[(TOMORROW, 4, 4)],
    ),
}  # fmt: skip
PRODUCTS = {name: f"{number}-USD" for number, name in enumerate(STORIES)}


@pytest.fixture(scope="module")
def told(server: Server, dbt: Dbt) -> tuple[Build, dict[str, list[Range]]]:
    """Build all stories at once, each with a product of its own."""
    lakehouse = Lakehouse(server.fresh_database(), dbt)
    for name, story in STORIES.items():
        lakehouse.receive(*(frame | {"product_id": PRODUCTS[name]} for frame in story.came))
        if (story.open, story.absent) != ("{}", "{}"):
            lakehouse.record_gap(story.open, story.absent, PRODUCTS[name])
    said = build(lakehouse)
    return said, unexplained(lakehouse, dbt)


@pytest.mark.parametrize("name", STORIES)
def test_what_nothing_explains_is_named(
    told: tuple[Build, dict[str, list[Range]]], name: str
) -> None:
    said, named = told
    assert said.failed == {CHECK}
    assert named.get(PRODUCTS[name]) == STORIES[name].left


@pytest.mark.postgres18_only
def test_a_hole_fails_each_build_until_it_is_explained(lakehouse: Lakehouse) -> None:
    lakehouse.receive(*trades(1, 2, 4))
    for _ in range(2):
        assert build(lakehouse).failed == {CHECK}
    lakehouse.receive(*trades(5, at=DAY))
    assert build(lakehouse).failed == {CHECK}
    lakehouse.record_gap("{[3,4)}")
    lakehouse.build("--vars", "{gap_grace_seconds: 0}")
    assert lakehouse.rows("select model from ops.model_watermarks where checked < high") == []


@pytest.mark.postgres18_only
def test_a_hole_that_rest_fills_later_leaves_a_complete_day(lakehouse: Lakehouse, dbt: Dbt) -> None:
    lakehouse.receive(*trades(1, 2, 5))
    lakehouse.receive(advanced_frame(*trades(7, at=DAY)), source="advanced_ws")
    lakehouse.record_gap("{[3,5),[6,7)}")
    assert build(lakehouse).failed == set()
    assert lakehouse.rows(COMPLETENESS, "BTC-USD") == [
        day(TODAY, 1, 5, trades=3, missing=2, share=Decimal("0.6")),
        day(TOMORROW, 7, 7, trades=1, missing=1, share=Decimal("0.5")),
    ]

    # Not read by silver yet, and no longer in the gap.
    lakehouse.repair(*trades(4, 3), *trades(6, at=DAY))
    lakehouse.database.execute(
        "update bronze.trade_gaps set missing = '{}', repaired = 3, closed_at = now()"
    )
    checked = lakehouse.dbt("test", "-s", CHECK, "--vars", "{gap_grace_seconds: 0}")
    assert checked.failed == set()
    assert unexplained(lakehouse, dbt) == {}

    assert build(lakehouse).failed == set()
    assert lakehouse.rows(COMPLETENESS, "BTC-USD") == [
        day(TODAY, 1, 5, trades=5, repaired=2),
        day(TOMORROW, 6, 7, trades=2, repaired=1),
    ]


def day(
    of: date, first: int, last: int, *, trades: int, missing: int = 0, repaired: int = 0,
    share: Decimal = Decimal(1),
) -> dict[str, Any]:  # fmt: skip
    return {
        "day": of,
        "first_trade_id": first,
        "last_trade_id": last,
        "trades": trades,
        "missing": missing,
        "repaired": repaired,
        "share_complete": share,
    }


@pytest.mark.postgres18_only
def test_a_missing_trade_counts_when_the_one_behind_it_was_read_a_minute_ago(
    lakehouse: Lakehouse, dbt: Dbt
) -> None:
    lakehouse.receive(*trades(1, 3))
    lakehouse.build()
    lakehouse.build()
    lakehouse.database.execute(
        "update ops.pipeline_runs set end_ts = end_ts - interval '30 seconds'"
    )
    lakehouse.receive(*trades(5))
    lakehouse.build()
    lakehouse.database.execute("update ops.pipeline_runs set end_ts = end_ts - interval '1 minute'")
    lakehouse.receive(*trades(7))
    assert lakehouse.dbt("build").failed == {CHECK}
    assert unexplained(lakehouse, dbt) == {"BTC-USD": [(TODAY, 2, 2), (TODAY, 4, 4)]}


@pytest.mark.postgres18_only
def test_a_day_between_and_a_day_before_all_others_move_what_is_missing(
    lakehouse: Lakehouse,
) -> None:
    first, between, last = (TODAY - timedelta(days=days) for days in (3, 1, 0))
    lakehouse.receive(*trades(20, 21, at=-3 * DAY), *trades(30))
    lakehouse.record_gap("{[1,30)}")
    lakehouse.build()
    missing = "select day, missing from gold.trade_completeness order by day"
    assert lakehouse.rows(missing) == [{"day": first, "missing": 0}, {"day": last, "missing": 8}]
    lakehouse.receive(*trades(25, at=-DAY), *trades(11, 15, at=-4 * DAY))
    build(lakehouse)
    assert lakehouse.rows(missing) == [
        {"day": TODAY - timedelta(days=4), "missing": 3},
        {"day": first, "missing": 4},
        {"day": between, "missing": 3},
        {"day": last, "missing": 4},
    ]
    step_by_step = lakehouse.fingerprints()
    assert build(lakehouse, "--full-refresh").failed == set()
    assert lakehouse.fingerprints() == step_by_step


@pytest.mark.postgres18_only
@pytest.mark.parametrize(
    ("gap", "warned"),
    [
        ({"found_at": datetime.now(UTC) - timedelta(minutes=50)}, False),
        ({"found_at": datetime.now(UTC) - timedelta(hours=2)}, True),
        ({"found_at": datetime.now(UTC) - timedelta(hours=2), "missing": "{}"}, False),
        (
            {
                "found_at": datetime.now(UTC) - timedelta(hours=2),
                "next_try_at": datetime.max.replace(tzinfo=UTC),
            },
            False,
        ),
    ],
    ids=["new", "old", "closed", "given up until a backfill"],
)
def test_a_gap_that_stays_open_is_told(
    lakehouse: Lakehouse, gap: dict[str, Any], warned: bool
) -> None:
    lakehouse.record_gap(**({"missing": "{[3,4)}", "absent": "{[4,5)}"} | gap))
    said = lakehouse.dbt("build", "-s", "trade_gaps_open_too_long")
    assert ("trade_gaps_open_too_long" in said.warned) is warned
